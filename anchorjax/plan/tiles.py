"""What one tile of attention costs: cycles of the TPU kernels by their compiled schedules, and FLOPs on GPUs.

A pass over the tiles of one query head takes, in cycles of one TensorCore,

    whole tiles x whole + masked tiles x masked + all tiles x step + lines x line

`whole` and `masked` are the bodies that compute a tile without and with a mask, each max(bundles, bound of the matrix
units); `step` are the scalar bundles between tiles, and `line` those at both ends of a line of tiles: a query tile's
forward, a key tile's backward. Waiting for memory is left out. Bundles are those of heads of 128:

    python -m benchmarks.compiled.tpu_schedule --constants --targets=v4,v5e,v5p,v6e,tpu7x

prints COST, and a slow test compares both. A head of another width costs as much for each 128 of it, rounded up.
Nothing was measured on a GPU: the shares of its peak that kernels reach are assumed.
"""

import dataclasses
import math
from collections.abc import Mapping

from anchorjax.plan.hardware import Hardware

PASSES = ("forward", "backward")
MATMULS = {"forward": 2, "backward": 5}  # of q_tile x kv_tile x head width multiply-adds each
WIDTH = 128

# bf16 FLOPs a cycle of one TensorCore, which is what a kernel is compiled for.
#   v4    275e12 / 1.05e9 / 2 -> 4 matrix units of 128 x 128 multiply-adds: 131072
#   v5e   197e12 / 1.50e9 / 1 -> the same
#   v5p   459e12 / 1.75e9 / 2 -> the same
#   v6e   918e12 / 1.75e9 / 1 -> 2 units of 256 x 256, two rows of input a cycle: 524288
#   tpu7x 1153.5e12 / 2.2e9 / 1 -> the same
# Peaks: cloud.google.com/tpu/docs, and `pallas.tpu.get_tpu_info`; clocks follow from them and the units.
FLOPS_PER_CYCLE = {"v4": 131072, "v5e": 131072, "v5p": 131072, "v6e": 524288, "tpu7x": 524288}
CORES = {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1, "tpu7x": 1}  # of a JAX device; they share its heads


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cycles of one pass over one head; see above."""

    whole: float
    masked: float
    step: float
    line: float


LIBTPU = "0.0.42.1"  # that scheduled the table; 0.0.50 makes the masked forward tile of v6e 28% longer
# By target and (query tile, key tile), in tokens.
COST = {
    ("v4", 512, 512): {"forward": Cost(1399, 1730, 495, 1617), "backward": Cost(2763, 3173, 663, 525)},
    ("v5e", 512, 512): {"forward": Cost(1097, 1081, 272, 1088), "backward": Cost(2560, 2560, 425, 535)},
    ("v5p", 512, 512): {"forward": Cost(1084, 1090, 497, 1112), "backward": Cost(2560, 2560, 658, 545)},
    ("v6e", 1024, 1024): {"forward": Cost(2802, 3265, 307, 1466), "backward": Cost(5361, 5868, 484, 554)},
    ("tpu7x", 1024, 1024): {"forward": Cost(2732, 3204, 465, 1503), "backward": Cost(5363, 6009, 614, 566)},
}

# Share of the peak that the kernel reaches, forward and backward together. Assumed: kvax publishes 393 TFLOP/s for
# packed rows of 128K tokens on an H100 with a kernel of the same kind (Pallas Triton), 0.40 of its peak; an A100 is
# easier to fill and a B200 harder.
GPU_SHARE = {"a100": 0.5, "h100": 0.4, "b200": 0.3}
XLA_SHARE = 0.1  # of `attention.implementation=xla` on an accelerator, assumed


def clock(hardware: Hardware) -> float:
    """Cycles a second of a TPU's core."""
    return hardware.peak_flops / CORES[hardware.target] / FLOPS_PER_CYCLE[hardware.target]


def flops(q_tile: int, kv_tile: int, head_dim: int, passes: Mapping[str, float]) -> float:
    """FLOPs of one tile and head, with each pass taken so many times."""
    return sum(times * MATMULS[which] for which, times in passes.items()) * 2 * q_tile * kv_tile * head_dim


def cost(target: str, q_tile: int, kv_tile: int) -> tuple[dict[str, Cost], float]:
    """The cost of each pass, and what to multiply it by: 1, or the ratio of the areas for a tile that is not listed."""
    listed = {(q, kv): both for (name, q, kv), both in COST.items() if name == target}
    distance = lambda tile: (tile != (q_tile, kv_tile), abs(math.log(math.prod(tile) / (q_tile * kv_tile))))  # noqa: E731
    known_q, known_kv = min(listed, key=distance)
    found = listed[known_q, known_kv]
    return found, q_tile * kv_tile / (known_q * known_kv)


def cycles(
    found: Mapping[str, Cost], passes: Mapping[str, float], whole: float, masked: float, lines: Mapping[str, float]
) -> float:
    """Cycles of one head of 128.

    Args:
      found: the cost of each pass.
      passes: how often each is taken.
      whole, masked: tiles.
      lines: of tiles, of each pass.
    """
    total = 0.0
    for which, times in passes.items():
        one = found[which]
        tiles = whole * one.whole + masked * one.masked + (whole + masked) * one.step
        total += times * (tiles + lines[which] * one.line)
    return total


def masked_share(pairs: float, tiles: float, q_tile: int, kv_tile: int) -> float:
    """The share of live tiles that need a mask, if half of such a tile is visible on average, as on the diagonal."""
    seen = pairs / (tiles * q_tile * kv_tile) if tiles else 1.0
    return min(1.0, max(0.0, 2 * (1 - seen)))


def widths(head_dim: int) -> int:
    """A head's width in units of 128."""
    return math.ceil(head_dim / WIDTH)


def gpu_share(target: str, implementation: str) -> float:
    """The share of the peak that an implementation reaches where no schedule is known."""
    return GPU_SHARE.get(target, XLA_SHARE) if implementation == "pallas_gpu" else XLA_SHARE


def assumptions(hardware: Hardware, implementation: str, q_tile: int, kv_tile: int) -> list[str]:
    """Lines on what is assumed of attention's kernels."""
    if implementation != "pallas_tpu" or not hardware.is_tpu:
        share = gpu_share(hardware.target, implementation)
        return [f"attention of {implementation} reaches {share:.0%} of the peak in its tiles; none was measured"]
    lines = [
        "attention's kernels take the bundles of their compiled schedules and never wait for memory; half of a tile "
        "that needs a mask is visible"
    ]
    if (hardware.target, q_tile, kv_tile) not in COST:
        lines.append(f"tiles of {q_tile} x {kv_tile} cost by area what the nearest listed ones do")
    return lines
