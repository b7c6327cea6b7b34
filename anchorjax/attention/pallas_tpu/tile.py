"""What both kernels do inside a tile, and how they are called."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from anchorjax.attention.anchors import NOTHING

LANES = 128  # of a vector register; its 8 sublanes are the other side
LOG2E = math.log2(math.e)
MASKED = 2 * NOTHING  # below the softmax's initial maximum, so that exp2 of the difference is 0 and never 1
NO_SEGMENT = -2  # of keys that no tile may see: pads, and anchors, which are done apart
NT, NN, TN = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ()))  # x y', x y, x' y


@dataclasses.dataclass(frozen=True)
class Static:
    """What a kernel is compiled for."""

    q_tile: int
    kv_tile: int
    group: int  # query heads per key head
    q_tiles_per_row: int
    num_anchors: int
    scale: float
    window: int | None
    soft_cap: float | None
    exact: bool  # true fp32 products, for fp32 arrays

    def dot(self, x, y, dimensions):
        precision = jax.lax.Precision.HIGHEST if self.exact else None
        return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)

    def bend(self, s):
        """Dot products to logits in base 2, and the logits' derivative by the scaled dot products (None is 1)."""
        if self.soft_cap is None:
            return s * (self.scale * LOG2E), None
        ratio = jnp.tanh(s * (self.scale / self.soft_cap))
        return ratio * (self.soft_cap * LOG2E), 1.0 - ratio * ratio

    def visible(self, q_index, kv_index, q_segment, kv_segment):
        """`masks.allowed` for keys that are neither pads nor anchors."""
        rule = (q_segment == kv_segment) & (kv_index <= q_index)
        if self.window is not None:
            rule &= q_index - kv_index < self.window
        return rule


# The largest tiles (1024 x 1024) need about 30 MB. The rest keeps XLA from holding a middling row's arrays in VMEM
# too, so that memory in HBM grows evenly with the row.
_VMEM_LIMIT = 100 * 2**20


def run(kernel, arguments, *, grid_spec, **kwargs):
    """Calls a kernel. Heads are independent, so that a chip's two cores may share them."""
    semantics = ("parallel",) + ("arbitrary",) * (len(grid_spec.grid) - 1)
    params = pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=_VMEM_LIMIT)
    return pl.pallas_call(kernel, grid_spec=grid_spec, compiler_params=params, **kwargs)(*arguments)


def output(shape: tuple[int, ...], dtype, x: jax.Array) -> jax.ShapeDtypeStruct:
    """An output that, inside `shard_map`, differs between devices as the input x does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def div(x, y: int):
    """x // y of traced x >= 0. Python's operators also treat negative numbers, for which Mosaic asks the device."""
    return jax.lax.div(x, jnp.asarray(y, x.dtype))


def rem(x, y: int):
    """x % y of traced x >= 0."""
    return jax.lax.rem(x, jnp.asarray(y, x.dtype))


def column(row_1t):
    """A row of numbers along lanes as a column, repeated over 128 lanes: [1, t] -> [t, 128]."""
    return jnp.broadcast_to(row_1t, (LANES, row_1t.shape[1])).T


def lanes(x_t128, width):
    """[t, 128] of equal lanes -> [t, width]."""
    if width <= LANES:
        return x_t128[:, :width]
    repeated = jnp.tile(x_t128, (1, -(-width // LANES)))
    return repeated[:, :width]
