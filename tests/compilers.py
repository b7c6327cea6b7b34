"""For gates that compile for hardware which is not there: is the compiler, and what does a program say of it?"""

import functools
import json
import os
import subprocess
import sys

import pytest

from anchorjax.errors import MissingCompiler
from tests.training.jobs import ROOT

TIMEOUT_S = 1200  # twice the longest compilation on a busy machine

_HAS = """
import json, sys
from anchorjax import targets
targets.prepare()
print(json.dumps(targets.has_compiler(sys.argv[1])))
"""


# In front of every program: nothing deprecated is compiled. One message is let through, as only other kernels would end
# it: since jax 0.11 the Triton backend of Pallas as a whole is to go, and Mosaic GPU takes none of pallas_gpu's code.
_NOTHING_DEPRECATED = """
import warnings
warnings.simplefilter("error", DeprecationWarning)
warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
"""


def require_compiler(target: str) -> None:
    """Where the target's compiler is missing, fails the calling test under CI and skips it elsewhere."""
    if not _has_compiler(target):
        missing = str(MissingCompiler(target))
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)


def run_program(program: str, *args):
    """The JSON on the last line that the program writes, run in a process of its own with one CPU device."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", _NOTHING_DEPRECATED + program, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def _has_compiler(target: str) -> bool:
    return run_program(_HAS, target)
