"""Live tiles of packed rows, and pictures of their masks.

Nothing is timed. A fast path visits live tiles alone (attention/plan.py), so their share models the cost of attention,
if every tile costs the same.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax.attention.plan import MAX_TILES, classify_tiles
from anchorjax.data.rows.packing import RowPacker
from anchorjax.masks import Mask, allowed, anchors_of
from anchorjax.types import PAD_SEGMENT

MOST_ROWS, MOST_TOKENS, FEWEST_ROWS = 64, 2**21, 4  # in which tiles are counted, at each row length
PICTURE = 512  # pixels along each side of a mask
HIDDEN, SEEN, ANCHOR = range(3)  # values of a picture


@dataclasses.dataclass(frozen=True)
class LiveTiles:
    """Live tiles in a sample of an epoch's rows: under their mask, and under the full causal mask (`full`)."""

    seq_len: int
    q_tile: int
    kv_tile: int
    rows: int
    of_rows: int
    live: int
    full: int

    @property
    def share(self) -> float:
        return self.live / self.full

    @property
    def speed_up(self) -> float:
        return self.full / self.live


def draw_rows(num_rows: int, most: int, seed: int) -> list[int]:
    """Draws up to `most` different rows out of 0 .. num_rows - 1, in order; the same seed gives the same rows."""
    if num_rows <= most:
        return list(range(num_rows))
    return sorted(np.random.default_rng(seed).choice(num_rows, most, replace=False).tolist())


def countable(seq_len: int, q_tile: int, kv_tile: int) -> bool:
    """Returns whether a plan can hold the tiles of a row."""
    return -(-seq_len // min(q_tile, kv_tile)) <= MAX_TILES


def count_live_tiles(packer: RowPacker, q_tile: int, kv_tile: int, seed: int) -> LiveTiles:
    """Counts live tiles of rows of `packer`, whose mask must not be full. It needs at most MAX_TILES^2 bytes."""
    most = min(MOST_ROWS, max(FEWEST_ROWS, MOST_TOKENS // packer.seq_len))
    rows = draw_rows(packer.rows_per_epoch, most, seed)
    live = full = 0
    for row in rows:
        segment_ids_T = packer.row(row).segment_ids_T
        live += _count(segment_ids_T, anchors_of(packer.mask), q_tile, kv_tile)
        full += _count(np.where(segment_ids_T == PAD_SEGMENT, PAD_SEGMENT, 0), 0, q_tile, kv_tile)
    return LiveTiles(packer.seq_len, q_tile, kv_tile, len(rows), packer.rows_per_epoch, live, full)


def _count(segment_ids_T: np.ndarray, num_anchors: int, q_tile: int, kv_tile: int) -> int:
    segment_ids_T = jnp.asarray(segment_ids_T, jnp.int32)
    return int(np.asarray(_count_by_query(segment_ids_T, num_anchors, q_tile, kv_tile)).sum(dtype=np.int64))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _count_by_query(segment_ids_T: jax.Array, num_anchors: int, q_tile: int, kv_tile: int) -> jax.Array:
    """Returns int32 [I], the live tiles of each query tile. Their sum may exceed int32."""
    mask = Mask.from_segments(segment_ids_T[None], num_anchors)
    return jnp.sum(classify_tiles(mask, q_tile, kv_tile)[0][0], axis=-1, dtype=jnp.int32)


def picture(segment_ids_T: np.ndarray, num_anchors: int, most: int = PICTURE) -> np.ndarray:
    """Draws the mask of a row as uint8 [P, P], queries downwards: HIDDEN, SEEN, or ANCHOR where the key is an anchor.

    A row of more than `most` tokens is sampled at `most` equally distant tokens, of which the first is the anchor.
    """
    T = len(segment_ids_T)
    index_P = np.arange(T) if T <= most else np.arange(most) * T // most
    segment_P = segment_ids_T[index_P]
    seen_PP = allowed(index_P[:, None], index_P[None], segment_P[:, None], segment_P[None], num_anchors)
    return np.where(seen_PP, np.where(index_P < num_anchors, ANCHOR, SEEN), HIDDEN).astype(np.uint8)
