"""The shapes each kernel works in: which part of a tile at a time, by how many warps."""

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


# By (bytes of a number, head width as padded).
FORWARD = {
    (2, 64): Blocks(128, 64, 4, 3),
    (2, 128): Blocks(128, 64, 8, 3),
    (2, 256): Blocks(64, 32, 8, 2),
    (4, 64): Blocks(32, 32, 4, 2),
    (4, 128): Blocks(32, 32, 4, 2),
    (4, 256): Blocks(16, 16, 4, 2),
}
DQ = {
    (2, 64): Blocks(128, 64, 8, 2),
    (2, 128): Blocks(64, 64, 8, 2),
    (2, 256): Blocks(64, 32, 8, 2),
    (4, 64): Blocks(32, 32, 4, 2),
    (4, 128): Blocks(32, 16, 4, 2),
    (4, 256): Blocks(16, 16, 4, 2),
}
DKV = {
    (2, 64): Blocks(128, 64, 8, 2),
    (2, 128): Blocks(64, 64, 8, 2),
    (2, 256): Blocks(64, 32, 8, 2),
    (4, 64): Blocks(32, 32, 4, 2),
    (4, 128): Blocks(32, 16, 4, 2),
    (4, 256): Blocks(16, 16, 4, 2),
}


def fit(table: dict, dtype, padded_width: int, outer_tile: int, inner_tile: int) -> Blocks:
    """The table's blocks, cut to the plan's tile."""
    blocks = table[jnp.dtype(dtype).itemsize, padded_width]
    return dataclasses.replace(blocks, outer=min(blocks.outer, outer_tile), inner=min(blocks.inner, inner_tile))
