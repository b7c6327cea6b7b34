"""Which tiles of the attention matrix hold an allowed pair: built once per step, read by every layer.

A tile is one (query block, key block) pair; it is live if `masks.may_hold` says so. Fast paths visit live tiles only,
so a packed row costs what its documents cost. Anchor keys make no tile live: each fast path starts its softmax from
them instead. Letters: I query tiles, J key tiles of a row.

Everything is O(T + B*I*J) memory. A dead tile that is called live, as `masks.may_hold` may do beyond 256 interleaved
documents a row, contributes nothing; a live tile is never called dead.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from anchorjax import masks
from anchorjax.masks import Mask
from anchorjax.types import PAD_SEGMENT

_FAR = jnp.iinfo(jnp.int32).max

# An entry of a list is one int32: 13 bits of query tile, 13 bits of key tile, 5 bits of flags.
_TILE_BITS, _FLAG_BITS = 13, 5
MAX_TILES = 2**_TILE_BITS  # along each side, all rows of a device together: 4M tokens at tile 512
FIRST_OF_Q, LAST_OF_Q, FIRST_OF_KV, LAST_OF_KV, NEEDS_MASK = (1 << n for n in range(_FLAG_BITS))
# Entries in one chunk of a list. A TPU kernel reads its list from scalar memory, 1 MB in all; a full causal
# row of 1M tokens has 2M tiles of 512.
_CHUNK = 2**16

SMALLEST_TILE = 8  # tokens along a side where no hardware asks for more: below, lists cost more than they save


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visits:
    """The visited tiles in one order, numbered across all rows (row b's i-th is b * I + i).

    Attributes:
      entries_CP: int32, see `unpack`. Chunk c holds the entries of `tiles_per_chunk` tiles of the outer side,
        the first counts_C1[c] of its line; those behind mean nothing.
      counts_C1: int32.
      starts_1R: int32; where the entries of outer tile r begin, in the flattened entries_CP.
      lengths_1R: int32; how many they are, at least one.
      tiles_per_chunk: of the outer side (static).
    """

    entries_CP: jax.Array
    counts_C1: jax.Array
    starts_1R: jax.Array
    lengths_1R: jax.Array
    tiles_per_chunk: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """A mask and the tiles to visit for it, by query tile (forward pass) and by key tile (backward pass).

    Both lists hold every live tile, and one dead tile for each query tile without a live one, so that kernels which
    write their output on the last visit write all of it; the list by key also one for each such key tile. Flags are
    those of the list.

    Attributes:
      mask: which keys each query may attend to. The tiles were listed for it, and it decides inside of a tile.
      q_tile, kv_tile: tokens along each side of a tile (static).
    """

    mask: Mask
    by_query: Visits
    by_key: Visits
    q_tile: int = dataclasses.field(metadata={"static": True})
    kv_tile: int = dataclasses.field(metadata={"static": True})


def refused_tile(q_tile: int, kv_tile: int, takes: Callable[[int], bool], allowed: str) -> tuple[str, str] | None:
    """(the first side that an implementation does not take, what is allowed), or None: see `supports` in attention."""
    sides = {"q_tile": q_tile, "kv_tile": kv_tile}
    return next(((name, allowed) for name, tile in sides.items() if not takes(tile)), None)


def unpack(entry: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(query tile, key tile, flags) of an entry."""
    tiles = entry >> _FLAG_BITS
    return tiles >> _TILE_BITS, tiles & (MAX_TILES - 1), entry & (2**_FLAG_BITS - 1)


def make_plan(mask: Mask, q_tile: int, kv_tile: int) -> Plan:
    """Builds the plan under jit. T and S need not divide the tile: the last tile may be part empty.

    Raises:
      ValueError: more than MAX_TILES tiles along one side.
    """
    live_BIJ, needs_mask_BIJ = classify_tiles(mask, q_tile, kv_tile)
    B, I, J = live_BIJ.shape
    if B * max(I, J) > MAX_TILES:
        raise ValueError(
            f"attention: {B} rows of {mask.q_index_BT.shape[1]} queries and {mask.kv_index_BS.shape[1]} keys are more "
            f"than {MAX_TILES} tiles of {q_tile} x {kv_tile}; use larger tiles or fewer rows per device"
        )
    needs_mask_BIJ = jnp.where(needs_mask_BIJ, NEEDS_MASK, 0)
    row_B11 = jnp.arange(B, dtype=jnp.int32)[:, None, None]
    q_BI1 = row_B11 * I + jnp.arange(I, dtype=jnp.int32)[:, None]
    kv_B1J = row_B11 * J + jnp.arange(J, dtype=jnp.int32)
    visited_BIJ = live_BIJ | _first_of_dead(live_BIJ, 2)
    flags_BIJ = needs_mask_BIJ | _ends(visited_BIJ)
    by_query = _list(visited_BIJ.reshape(B * I, J), _pack(q_BI1, kv_B1J, flags_BIJ).reshape(B * I, J))
    visited_BIJ |= _first_of_dead(live_BIJ, 1)
    flags_BIJ = needs_mask_BIJ | _ends(visited_BIJ)
    # With the key tile in the high bits these sort by key tile; then the two change places.
    key_major_BIJ = _pack(kv_B1J, q_BI1, flags_BIJ)
    by_key = _list(*(x.swapaxes(1, 2).reshape(B * J, I) for x in (visited_BIJ, key_major_BIJ)))
    kv_CP, q_CP, flags_CP = unpack(by_key.entries_CP)
    by_key = dataclasses.replace(by_key, entries_CP=_pack(q_CP, kv_CP, flags_CP))
    return Plan(mask, by_query, by_key, q_tile, kv_tile)


def _pack(outer: jax.Array, inner: jax.Array, flags: jax.Array) -> jax.Array:
    return ((outer << _TILE_BITS | inner) << _FLAG_BITS) | flags


def _first_of_dead(live_BIJ: jax.Array, axis: int) -> jax.Array:
    """The first tile of each line along an axis that has no live tile."""
    return ~jnp.any(live_BIJ, axis, keepdims=True) & (jax.lax.broadcasted_iota(jnp.int32, live_BIJ.shape, axis) == 0)


def _ends(visited_BIJ: jax.Array) -> jax.Array:
    """The flags of the first and the last visited tile along both axes."""
    by_query, by_key = (2, FIRST_OF_Q, LAST_OF_Q), (1, FIRST_OF_KV, LAST_OF_KV)
    return _ends_along(visited_BIJ, *by_query) | _ends_along(visited_BIJ, *by_key)


def _ends_along(visited_BIJ: jax.Array, axis: int, first: int, last: int) -> jax.Array:
    place = jax.lax.broadcasted_iota(jnp.int32, visited_BIJ.shape, axis)
    lowest = jnp.min(jnp.where(visited_BIJ, place, _FAR), axis, keepdims=True)
    highest = jnp.max(jnp.where(visited_BIJ, place, -1), axis, keepdims=True)
    return jnp.where(place == lowest, first, 0) | jnp.where(place == highest, last, 0)


def _list(visited_RM: jax.Array, entries_RM: jax.Array) -> Visits:
    """Outer tiles R, inner tiles M: the visited entries of each chunk, which ascend, moved to its front.

    They are sorted by their own value. Sorting an order and gathering by it took a TPU's compiler four times as long.
    """
    R, M = visited_RM.shape
    tiles_per_chunk = min(R, max(1, _CHUNK // M))
    pad = ((0, -R % tiles_per_chunk), (0, 0))
    listed_CP = jnp.pad(jnp.where(visited_RM, entries_RM, _FAR), pad, constant_values=_FAR).reshape(
        -1, tiles_per_chunk * M
    )
    lengths_R = jnp.sum(visited_RM, axis=-1, dtype=jnp.int32)
    lengths_Cr = jnp.pad(lengths_R, pad[0]).reshape(-1, tiles_per_chunk)
    starts_Cr = jnp.cumsum(lengths_Cr, axis=-1) - lengths_Cr
    starts_Cr += jnp.arange(starts_Cr.shape[0], dtype=jnp.int32)[:, None] * (tiles_per_chunk * M)
    counts_C1 = jnp.sum(lengths_Cr, axis=-1, keepdims=True)
    sorted_CP = jax.lax.sort(listed_CP, dimension=1, is_stable=False)
    return Visits(
        # Tile 0 behind the listed ones: by their number, as the last tile of MAX_TILES with all flags is _FAR too.
        entries_CP=jnp.where(jnp.arange(tiles_per_chunk * M) < counts_C1, sorted_CP, 0),
        counts_C1=counts_C1,
        starts_1R=starts_Cr.reshape(1, -1)[:, :R],
        lengths_1R=lengths_R[None],
        tiles_per_chunk=tiles_per_chunk,
    )


def classify_tiles(mask: Mask, q_tile: int, kv_tile: int) -> tuple[jax.Array, jax.Array]:
    """Two bool [B, I, J]: may the tile hold an allowed pair whose key is no anchor, and one that is not allowed?"""
    q = _spans(mask.q_segment_ids_BT, mask.q_index_BT, 0, q_tile)
    kv = _spans(mask.kv_segment_ids_BS, mask.kv_index_BS, mask.num_anchors, kv_tile)
    q = jax.tree.map(lambda x: x[:, :, None], q)
    kv = jax.tree.map(lambda x: x[:, None, :], kv)
    return masks.may_hold(q, kv, mask.window), ~masks.holds_all(q, kv, mask.window)


def _spans(segment_ids_BT: jax.Array, index_BT: jax.Array, num_anchors: int, tile: int) -> masks.Span:
    segment_ids_BIt = pad_to_tiles(segment_ids_BT, tile, PAD_SEGMENT)
    return masks.span(segment_ids_BIt, pad_to_tiles(index_BT, tile, _FAR), num_anchors)


def pad_to_tiles(x_BT: jax.Array, tile: int, fill: int) -> jax.Array:
    """[B, T, ...] -> [B, ceil(T / tile), tile, ...], filling the end."""
    B, T = x_BT.shape[:2]
    padding = [(0, 0), (0, -T % tile)] + [(0, 0)] * (x_BT.ndim - 2)
    return jnp.pad(x_BT, padding, constant_values=fill).reshape(B, -(-T // tile), tile, *x_BT.shape[2:])
