"""Notices a GPU or TPU that JAX does not use, because the package for it is not installed."""

import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import jax

# Extra of the package jax that drives it -> device nodes below /dev. TPUs from v5e on are passed through by VFIO.
_NODES = {"cuda13": ("nvidia[0-9]*", "dxg"), "tpu": ("accel[0-9]*", "vfio/[0-9]*")}
_NAMES = {"cuda13": "an NVIDIA GPU", "tpu": "a TPU"}


@functools.cache  # a process says it once, however many checkpoints it loads
def warn_if_unused() -> None:
    """Prints one line on stderr if a GPU or TPU is present and JAX computes on the CPU, unless JAX_PLATFORMS=cpu.

    Later calls do nothing.

    It starts JAX's backends: processes of one job must have found each other before.
    """
    if line := unused(jax.default_backend(), os.environ):
        print(f"warning: {line}", file=sys.stderr, flush=True)


def unused(backend: str, environ: Mapping[str, str], devices: Path = Path("/dev")) -> str | None:
    """Returns which accelerator lies idle and how to install what it needs, or None.

    Args:
      backend: of JAX: "cpu", "gpu" or "tpu".
      environ: JAX_PLATFORMS in it says whether the CPU was asked for.
      devices: where device nodes are.
    """
    if backend != "cpu" or environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return None
    for extra, patterns in _NODES.items():
        node = next((node for pattern in patterns for node in sorted(devices.glob(pattern))), None)
        if node:
            install = f'python -m pip install "jax[{extra}]=={jax.__version__}"'
            return f"{node} is {_NAMES[extra]}, and JAX uses the CPU: {install}, or JAX_PLATFORMS=cpu if it should"
    return None
