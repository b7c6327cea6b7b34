"""What is a GPU's own in all kernels: places and loads of blocks, the mask's branch, and the call."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from anchorjax.attention import kernels
from anchorjax.attention.kernels import MASKED
from anchorjax.attention.pallas_gpu import SMALLEST, interpret_context
from anchorjax.attention.pallas_gpu.blocks import Blocks
from anchorjax.attention.plan import NEEDS_MASK, unpack
from anchorjax.masks import allowed_in_tile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static(kernels.Static):
    """What a GPU kernel is compiled for."""

    q_tiles: int  # of one row
    kv_tiles: int
    T: int
    S: int
    width: int  # of a head

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

    def exists(self, start, size: int, length: int, walked_tile: int | None = None):
        """The mask of a block's numbers that lie inside of an array; None is all. `start` is a multiple of `size`.

        Args:
          walked_tile: of the side whose blocks a loop goes through. It goes through all blocks of the row's last
            tile, those too that lie behind the row. A program's own block begins inside of it.
        """
        columns = None if self.padded_width == self.width else jnp.arange(self.padded_width)[None] < self.width
        if length % (walked_tile or size) == 0:
            return columns
        rows = (start + jnp.arange(size))[:, None] < length
        return rows if columns is None else rows & columns

    def hide(self, s, flags, lines, queries, keys, key_major: bool):
        """MASKED where `masks.allowed_in_tile` says no.

        A tile without NEEDS_MASK loads no index and compares nothing. The branch is around the mask alone: around
        the matmuls too, Triton copies nothing ahead of them, and sm_80 needs 255 registers instead of 212.

        Args:
          lines: refs of q_index, q_segment [X], kv_index, kv_segment [Y].
          queries, keys: where the scores' tokens lie in them.
          key_major: are the scores [keys, queries]?
        """

        def masked(s):
            q_index, q_segment = (jnp.expand_dims(ref[queries], 0 if key_major else 1) for ref in lines[:2])
            kv_index, kv_segment = (jnp.expand_dims(ref[keys], 1 if key_major else 0) for ref in lines[2:])
            return jnp.where(allowed_in_tile(q_index, kv_index, q_segment, kv_segment, self.window), s, MASKED)

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


def whole(x) -> pl.BlockSpec:
    """All of an array, for a kernel to read where it likes."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)
