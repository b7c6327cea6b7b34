"""The shapes each kernel works in: which part of a tile at a time, by how many warps.

A tile of the plan and a block of a kernel are different things: a kernel goes through a tile block by block, so that
the plan's tiles may be chosen by documents and the blocks by registers. A thread has 255 registers; what does not fit
is spilled to memory at every step. The figures are ptxas's (13.5; benchmarks/compiled/gpu_static.py), registers a
thread on sm_80 / sm_90a / sm_100a: there none of these blocks spills. With a window and a soft cap, rows that no tile
divides, or 64-bit offsets, bf16 does not either, save 12 bytes at width 192 on sm_100a; fp32 then spills up to 24
bytes at some widths. All of it is compiled, not measured: a GPU may prefer others.
"""

import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Blocks:
    """What one program of a kernel keeps, and what it reads in one step of its loop.

    Attributes:
      outer: tokens of its own side (queries in the forward and dq kernels, keys in the dk, dv kernel).
      inner: tokens of the other side a step.
      warps: of 32 threads.
      stages: steps of the loop under way at once, loads ahead of matmuls.
    """

    outer: int
    inner: int
    warps: int
    stages: int


# By (bytes of a number, padded head width); narrower heads take the blocks of 64. Beside each: its registers.
FORWARD = {
    (2, 64): Blocks(128, 64, 8, 3),  # 160 / 124 / 110; with 4 warps 244 / 205 / 254
    (2, 128): Blocks(128, 64, 8, 3),  # 212 / 169 / 146; with 4 warps it spills on all three
    (2, 256): Blocks(64, 32, 8, 2),  # 156 / 170 / 126; 128 x 16 fits too, but rescales 128 x 256 sums every 16 keys
    (4, 64): Blocks(32, 32, 4, 2),  # 96 / 86 / 86
    (4, 128): Blocks(32, 32, 4, 2),  # 128 / 138 / 138
    (4, 256): Blocks(16, 16, 4, 2),  # 128 / 124 / 128
}
DQ = {
    (2, 64): Blocks(128, 32, 8, 2),  # 170 / 96 / 64; 128 x 64 takes all 255 of sm_80
    (2, 128): Blocks(64, 64, 8, 2),  # 156 / 135 / 64; 128 x 64 spills on sm_80
    (2, 256): Blocks(64, 32, 8, 2),  # 182 / 147 / 126
    (4, 64): Blocks(32, 32, 4, 2),  # 96 / 100 / 100
    (4, 128): Blocks(32, 16, 4, 2),  # 96 / 103 / 103
    (4, 256): Blocks(16, 16, 4, 2),  # 168 / 137 / 137
}
DKV = {
    (2, 64): Blocks(128, 32, 8, 2),  # 255 / 130 / 78; 128 x 64, 64 x 64 spill on sm_80
    (2, 128): Blocks(64, 64, 8, 2),  # 215 / 196 / 80; 128 x 32 spills on sm_80
    (2, 256): Blocks(64, 16, 8, 2),  # 252 / 209 / 124; 64 x 32 spills with a window and a soft cap
    (4, 64): Blocks(32, 32, 4, 2),  # 128 / 128 / 128
    (4, 128): Blocks(32, 16, 4, 2),  # 128 / 143 / 143
    (4, 256): Blocks(16, 16, 4, 2),  # 168 / 168 / 179
}


def fit(table: dict, dtype, width: int, outer_tile: int, inner_tile: int) -> Blocks:
    """The table's blocks for a padded head width, cut to the plan's tile."""
    blocks = table[jnp.dtype(dtype).itemsize, max(64, width)]
    return dataclasses.replace(blocks, outer=min(blocks.outer, outer_tile), inner=min(blocks.inner, inner_tile))
