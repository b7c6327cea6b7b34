"""Which tiles of the attention matrix hold an allowed pair: built once per step, read by every layer.

A tile is one (query block, key block) pair; it is live if `masks.allowed` may hold inside it. Fast paths
visit live tiles only, so a packed row costs what its documents cost. Anchor keys make no tile live: each
fast path starts its softmax from them instead. Letters: I query tiles, J key tiles.

Everything is O(T + I*J) memory. The test per tile is exact for documents that lie in one piece, in any
number. For interleaved pieces it is exact up to 256 documents a row; beyond that a dead tile may be called
live (it then contributes nothing), and a live tile is never called dead.
"""

import dataclasses

import jax
import jax.numpy as jnp

from anchorjax.masks import Mask
from anchorjax.types import PAD_SEGMENT

_WORDS, _BITS = 8, 32  # each tile's set of documents as 8 words of 32 bits, by segment id modulo 256
_FAR = jnp.iinfo(jnp.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """The live tiles of each row, in both orders.

    Attributes:
      kv_tiles_BIJ: int32; the first `kv_counts_BI` entries of a line are the live key tiles of that query
        tile, ascending. The entries behind them mean nothing.
      kv_counts_BI: int32.
      q_tiles_BJI, q_counts_BJ: the same lists by key tile, for the backward pass.
      q_tile, kv_tile: tokens along each side of a tile (static).
    """

    kv_tiles_BIJ: jax.Array
    kv_counts_BI: jax.Array
    q_tiles_BJI: jax.Array
    q_counts_BJ: jax.Array
    q_tile: int = dataclasses.field(metadata={"static": True})
    kv_tile: int = dataclasses.field(metadata={"static": True})


def make_plan(mask: Mask, q_tile: int, kv_tile: int) -> Plan:
    """Builds the plan under jit. T and S need not divide the tile: the last tile may be part empty."""
    live_BIJ = live_tiles(mask, q_tile, kv_tile)
    kv_tiles_BIJ, kv_counts_BI = _compact(live_BIJ)
    q_tiles_BJI, q_counts_BJ = _compact(live_BIJ.swapaxes(1, 2))
    return Plan(kv_tiles_BIJ, kv_counts_BI, q_tiles_BJI, q_counts_BJ, q_tile, kv_tile)


def live_tiles(mask: Mask, q_tile: int, kv_tile: int) -> jax.Array:
    """Bool [B, I, J]: may this tile hold an allowed pair whose key is not an anchor?"""
    q = _summarize(mask.q_segment_ids_BT, mask.q_index_BT, 0, q_tile)
    kv = _summarize(mask.kv_segment_ids_BS, mask.kv_index_BS, mask.num_anchors, kv_tile)
    q_BI1 = jax.tree.map(lambda x: x[:, :, None], q)
    kv_B1J = jax.tree.map(lambda x: x[:, None, :], kv)
    causal_BIJ = kv_B1J.first_index <= q_BI1.last_index
    ranges_meet_BIJ = (kv_B1J.low_segment <= q_BI1.high_segment) & (q_BI1.low_segment <= kv_B1J.high_segment)
    share_document_BIJ = jnp.any(q_BI1.documents & kv_B1J.documents, axis=-1)
    return causal_BIJ & ranges_meet_BIJ & share_document_BIJ


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Summary:
    """What a tile's tokens span; all [B, tiles], `documents` [B, tiles, words]."""

    first_index: jax.Array
    last_index: jax.Array
    low_segment: jax.Array
    high_segment: jax.Array
    documents: jax.Array


def _summarize(segment_ids_BT: jax.Array, index_BT: jax.Array, num_anchors: int, tile: int) -> _Summary:
    segment_ids_BIt = pad_to_tiles(segment_ids_BT, tile, PAD_SEGMENT)
    index_BIt = pad_to_tiles(index_BT, tile, _FAR)
    counts = (segment_ids_BIt != PAD_SEGMENT) & (index_BIt >= num_anchors)

    def over(x, empty, reduce):
        return reduce(jnp.where(counts, x, empty), axis=-1)

    word = jnp.arange(_WORDS, dtype=jnp.int32)
    bit = jnp.left_shift(jnp.uint32(1), (segment_ids_BIt % _BITS).astype(jnp.uint32))
    in_word = counts[..., None] & ((segment_ids_BIt // _BITS % _WORDS)[..., None] == word)
    return _Summary(
        first_index=over(index_BIt, _FAR, jnp.min),
        last_index=over(index_BIt, -1, jnp.max),
        low_segment=over(segment_ids_BIt, _FAR, jnp.min),
        high_segment=over(segment_ids_BIt, -1, jnp.max),
        documents=jnp.bitwise_or.reduce(jnp.where(in_word, bit[..., None], jnp.uint32(0)), axis=-2),
    )


def pad_to_tiles(x_BT: jax.Array, tile: int, fill: int) -> jax.Array:
    """[B, T, ...] -> [B, ceil(T / tile), tile, ...], filling the end."""
    B, T = x_BT.shape[:2]
    padding = [(0, 0), (0, -T % tile)] + [(0, 0)] * (x_BT.ndim - 2)
    return jnp.pad(x_BT, padding, constant_values=fill).reshape(B, -1, tile, *x_BT.shape[2:])


def _compact(live_BIJ: jax.Array) -> tuple[jax.Array, jax.Array]:
    order_BIJ = jnp.argsort(~live_BIJ, axis=-1, stable=True).astype(jnp.int32)
    return order_BIJ, jnp.sum(live_BIJ, axis=-1, dtype=jnp.int32)
