"""What the kernels do inside a tile, and how they are called."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from anchorjax.attention.anchors import NOTHING
from anchorjax.attention.pallas_gpu.blocks import SMALLEST, Blocks
from anchorjax.attention.plan import NEEDS_MASK, unpack

LOG2E = math.log2(math.e)
MASKED = 2 * NOTHING  # below the softmax's initial maximum, so that exp2 of the difference is 0 and never 1
NO_SEGMENT = -2  # of keys that no tile may see: pads, and anchors, which are done apart
NT, NN = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ()))  # x y', x y

# Part of jit's cache key, so that a function traced outside is traced anew inside.
interpret_context = jax.make_user_context(False)


@dataclasses.dataclass(frozen=True)
class Static:
    """What a kernel is compiled for."""

    q_tile: int
    kv_tile: int
    q_tiles: int  # of one row
    kv_tiles: int
    T: int
    S: int
    group: int  # query heads per key head
    width: int  # of a head
    num_anchors: int
    scale: float
    window: int | None
    soft_cap: float | None
    exact: bool  # true fp32 products, for fp32 arrays

    @property
    def padded_width(self) -> int:
        return max(SMALLEST, pl.next_power_of_2(self.width))

    def keys_of(self, entry, part, size: int, row):
        """Where a part of an entry's key tile starts, in its row and among the padded rows, and the flags."""
        _, tile, flags = unpack(entry)
        return *self._place(tile - row * self.kv_tiles, part, size, row, self.kv_tile, self.kv_tiles), flags

    def queries_of(self, entry, part, size: int, row):
        """The same of its query tile."""
        tile, _, flags = unpack(entry)
        return *self._place(tile - row * self.q_tiles, part, size, row, self.q_tile, self.q_tiles), flags

    @staticmethod
    def _place(tile, part, size, row, tile_size, tiles):
        start = tile * tile_size + part * size
        return start, row * (tiles * tile_size) + start

    def load(self, ref, mask):
        """A block [tokens, padded_width], zeros where the mask says that the array has none."""
        return plgpu.load(ref, mask=mask, other=None if mask is None else 0.0)

    def exists(self, start, size: int, length: int):
        """Which numbers of a block from token `start`, a multiple of `size`, an array has; None is all."""
        columns = None if self.padded_width == self.width else jnp.arange(self.padded_width)[None] < self.width
        if length % size == 0:
            return columns
        rows = (start + jnp.arange(size))[:, None] < length
        return rows if columns is None else rows & columns

    def dot(self, x, y, dimensions):
        """In fp32. Triton takes TF32 for fp32 arrays unless told otherwise: HIGHEST is its IEEE mode."""
        precision = jax.lax.Precision.HIGHEST if self.exact else None
        return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)

    def bend(self, s):
        """Dot products to logits in base 2, and the logits' derivative by the scaled dot products (None is 1)."""
        if self.soft_cap is None:
            return s * (self.scale * LOG2E), None
        ratio = jnp.tanh(s * (self.scale / self.soft_cap))
        return ratio * (self.soft_cap * LOG2E), 1.0 - ratio * ratio

    def hide(self, s, flags, lines, queries, keys, keys_first: bool):
        """MASKED where `masks.allowed` says no, for keys that are neither pads nor anchors.

        A tile without NEEDS_MASK loads no index and compares nothing. The branch is around the mask alone: around
        the matmuls too, Triton copies nothing ahead of them, and sm_80 needs 255 registers instead of 212.

        Args:
          lines: refs of q_index, q_segment [X], kv_index, kv_segment [Y].
          queries, keys: where the scores' tokens lie in them.
          keys_first: are the scores [keys, queries]?
        """

        def masked(s):
            q_index, q_segment = (jnp.expand_dims(ref[queries], 0 if keys_first else 1) for ref in lines[:2])
            kv_index, kv_segment = (jnp.expand_dims(ref[keys], 1 if keys_first else 0) for ref in lines[2:])
            rule = (q_segment == kv_segment) & (kv_index <= q_index)
            if self.window is not None:
                rule &= q_index - kv_index < self.window
            return jnp.where(rule, s, MASKED)

        return jax.lax.cond(flags & NEEDS_MASK != 0, masked, lambda s: s, s)


def run(kernel, name: str, blocks: Blocks, *, grid, in_specs, out_specs, out_shape):
    """A kernel as a function of its arrays."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret_context.value,
        name=name,
    )


def output(shape: tuple[int, ...], dtype, x: jax.Array) -> jax.ShapeDtypeStruct:
    """An output that, inside `shard_map`, differs between devices as the input x does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def whole(x) -> pl.BlockSpec:
    """All of an array, for a kernel to read where it likes."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def div(x, y: int):
    """x // y of traced x >= 0; Python's operators would also treat negative numbers."""
    return jax.lax.div(x, jnp.asarray(y, x.dtype))


def rem(x, y: int):
    """x % y of traced x >= 0."""
    return jax.lax.rem(x, jnp.asarray(y, x.dtype))
