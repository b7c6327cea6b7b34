"""What the machine is, and how fast it multiplies and copies: the ceilings that the other parts are held against.

matmul   bf16 [8192, 8192] x [8192, 8192] of random numbers: TFLOP/s
copy     2 GiB within the device's memory: GB/s, read and written bytes together
"""

import importlib.metadata
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp

from anchorjax.models.flops import PEAK_TFLOPS
from benchmarks.gpu_parts.part import Part
from benchmarks.gpu_parts.workers import enough_calls, seconds

ROUNDS = 5
SIDE, COPIED = 8192, 2**31
DRY_SIDE, DRY_COPIED = 256, 2**20
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "flax", "optax", "torch", "triton", "tokamax", "nvidia-cudnn-cu13")


def main(part: Part) -> None:
    part.add("machine", **machine())
    with part.guard("matmul"):
        side = DRY_SIDE if part.dry_run else SIDE
        x, y = (jax.random.normal(jax.random.key(n), (side, side), jnp.bfloat16) for n in range(2))
        times = timed(jax.jit(jnp.matmul), x, y)
        part.add("matmul", side=side, tflops=2 * side**3 / statistics.median(times) / 1e12, seconds=times)
    with part.guard("copy"):
        size = DRY_COPIED if part.dry_run else COPIED
        x = jax.random.bits(jax.random.key(0), (size // 4,), jnp.uint32)
        times = timed(jax.jit(jnp.copy), x)
        part.add("copy", bytes=size, gb_per_s=2 * size / statistics.median(times) / 1e9, seconds=times)


def machine() -> dict:
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "count": jax.device_count(),
        "data_sheet_tflops": PEAK_TFLOPS.get(device.device_kind),
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in PACKAGES if version(name)},
        "nvidia_smi": nvidia_smi(),
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def nvidia_smi() -> str:
    """Name, driver, memory, clocks and power as it prints them, or why there are none."""
    asked = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={asked}", "--format=csv"], capture_output=True, text=True)
    except OSError as error:
        return f"nvidia-smi: {error.strerror}"
    return (done.stdout or done.stderr).strip()


def timed(call, *arrays) -> list[float]:
    """Seconds of one call, in each of some rounds."""
    jax.block_until_ready(call(*arrays))
    calls = enough_calls(seconds(lambda: call(*arrays), jax.block_until_ready, 2))
    return [seconds(lambda: call(*arrays), jax.block_until_ready, calls) for _ in range(ROUNDS)]


if __name__ == "__main__":
    main(Part.asked("ceilings"))
