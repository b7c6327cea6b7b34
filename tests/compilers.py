"""Tests that compile for hardware this machine does not have: each program runs in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from anchorjax import targets
from anchorjax.errors import MissingCompiler

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT_S = 1200  # twice the longest compilation on a busy machine


def require_compiler(target: str) -> None:
    """Skips the calling test if the target's compiler is not installed; under CI (CI=true) fails it instead."""
    path = list(sys.path)  # JAX would try to start every device plugin on it
    targets.prepare()
    found = targets.has_compiler(target)
    sys.path[:] = path
    if found:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(str(MissingCompiler(target)))
    pytest.skip(str(MissingCompiler(target)))


def run_program(program: str, *arguments: object) -> dict:
    """Runs `python -c program arguments` from the repository's root, on one CPU device.

    Returns:
      The JSON object on the last line that it printed.
    """
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
