"""Who may attend to whom: the one rule of attention, in each of the forms in which it is read.

    allowed(q, k) = k.index <= q.index and (same segment or k is an anchor), and neither is padding

With a sliding window, "same segment" also asks for q.index - k.index < window; anchors stay in sight.

With the anchor A and the documents (a b c) and (d e) in one row (`x` = the query may see the key):

    keys            A a b c d e         A a b c d e         A a b c d e
    segment ids     0 1 1 1 2 2         0 1 1 1 2 2         0 0 0 0 0 0
    num_anchors     1  (anchor)         0  (intra_doc)      0  (full)
    query A         x . . . . .         x . . . . .         x . . . . .
    query a         x x . . . .         . x . . . .         x x . . . .
    query b         x x x . . .         . x x . . .         x x x . . .
    query c         x x x x . .         . x x x . .         x x x x . .
    query d         x . . . x .         . . . . x .         x x x x x .
    query e         x . . . x x         . . . . x x         x x x x x x

RoPE positions take no part: they are separate data and never decide visibility.

| form                                        | read by                                                       |
|---------------------------------------------|---------------------------------------------------------------|
| `allowed`, elementwise                      | the definition: reference, decoding, leakage probe, pictures  |
| `allowed_in_tile` with `tile_segment_ids`   | inside a tile, in every blockwise implementation and kernel   |
| `sees_anchor`                               | the anchor keys, which blockwise code handles separately      |
| `Span`, `span`, `may_hold`, `holds_all`     | the plan: a whole tile at once, by what its tokens span       |
| `count_live_pairs`, `count_visible`         | FLOP counts; scales of logits                                 |

`allowed(q, k)` is `sees_anchor` where k is an anchor and `allowed_in_tile` elsewhere; `may_hold` is never false for a
tile with such a pair. tests/test_masks.py holds every form against the dense one.

Source: AnchorAttention, "When Precision Meets Position" (arXiv 2411.13476), Section 3.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from anchorjax.types import MASKS, PAD_SEGMENT


def anchors_of(mask: str) -> int:
    """Returns the number of anchors of `data.mask`: leading tokens of a row that every later token may see.

    Raises ValueError for an unknown mask.
    """
    if mask not in MASKS:
        raise ValueError(f"unknown mask {mask!r}; allowed: {', '.join(MASKS)}")
    return 1 if mask == "anchor" else 0


def allowed(
    q_index: ArrayLike,
    kv_index: ArrayLike,
    q_segment: ArrayLike,
    kv_segment: ArrayLike,
    num_anchors: int,
    window: int | None = None,
) -> ArrayLike:
    """The attention rule, elementwise over broadcastable int arrays (numpy or jax). Returns bool."""
    causal = kv_index <= q_index
    same_document = q_segment == kv_segment
    if window is not None:
        same_document = same_document & (q_index - kv_index < window)
    anchor = kv_index < num_anchors
    real = (q_segment != PAD_SEGMENT) & (kv_segment != PAD_SEGMENT)
    return causal & (same_document | anchor) & real


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """What a query may see, and the softcap of its logits: O(T) memory, never a [T, S] array.

    Attributes:
      q_segment_ids_BT, kv_segment_ids_BS: int32 documents, -1 for padding.
      q_index_BT, kv_index_BS: int32 place of each token in its row. They are arrays and not offsets, so
        that shards of a row, and reordered rows, need no special case.
      num_anchors: keys with index below this are seen by every later query (static).
      window: keys of the same document that a query sees, itself among them; None is all (static).
      soft_cap: logits become soft_cap * tanh(logit / soft_cap); None leaves them (static; Gemma 2,
        arXiv 2408.00118, Section 2).
    """

    q_segment_ids_BT: jax.Array
    kv_segment_ids_BS: jax.Array
    q_index_BT: jax.Array
    kv_index_BS: jax.Array
    num_anchors: int = dataclasses.field(metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    soft_cap: float | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def from_segments(
        cls,
        segment_ids_BT: jax.Array,
        num_anchors: int,
        window: int | None = None,
        soft_cap: float | None = None,
        index_BT: jax.Array | None = None,
    ) -> "Mask":
        """Self-attention over whole rows.

        Args:
          index_BT: int32 place of each token in its row, `Batch.index_BT`; None: tokens are in their row's order.
        """
        if index_BT is None:
            # A sum and not a broadcast, so that on an explicit mesh the index is sharded like the segments.
            index_BT = jnp.zeros_like(segment_ids_BT) + jnp.arange(segment_ids_BT.shape[1], dtype=jnp.int32)
        return cls(segment_ids_BT, segment_ids_BT, index_BT, index_BT, num_anchors, window, soft_cap)

    def materialize(self) -> jax.Array:
        """The dense bool [B, T, S] array: for the reference, tests and pictures only."""
        return allowed(
            self.q_index_BT[:, :, None],
            self.kv_index_BS[:, None, :],
            self.q_segment_ids_BT[:, :, None],
            self.kv_segment_ids_BS[:, None, :],
            self.num_anchors,
            self.window,
        )


NO_SEGMENT = -2  # in `tile_segment_ids`: a key that no tile lets through


def tile_segment_ids(mask: Mask) -> jax.Array:
    """int32 segments of the keys [B, S] for `allowed_in_tile`: NO_SEGMENT for padding and for anchors."""
    hidden_BS = (mask.kv_segment_ids_BS == PAD_SEGMENT) | (mask.kv_index_BS < mask.num_anchors)
    return jnp.where(hidden_BS, NO_SEGMENT, mask.kv_segment_ids_BS)


def allowed_in_tile(
    q_index: ArrayLike,
    kv_index: ArrayLike,
    q_segment: ArrayLike,
    tile_segment: ArrayLike,
    window: int | None = None,
) -> ArrayLike:
    """`allowed` without the anchor keys, elementwise, with as few comparisons as a kernel can do it.

    Args:
      tile_segment: of the keys, from `tile_segment_ids`. A query in padding has PAD_SEGMENT, which no key has there.
    """
    rule = (q_segment == tile_segment) & (kv_index <= q_index)
    if window is not None:
        rule &= q_index - kv_index < window
    return rule


def sees_anchor(q_index: ArrayLike, q_segment: ArrayLike, anchor: ArrayLike) -> ArrayLike:
    """`allowed` for the key with index `anchor`, elementwise, if the row has that key and it is no padding.

    A window changes nothing: anchors stay in sight.
    """
    return (q_index >= anchor) & (q_segment != PAD_SEGMENT)


_WORDS, _BITS = 8, 32  # a tile's set of documents as 8 words of 32 bits, by segment id modulo 256
_FAR = jnp.iinfo(jnp.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Span:
    """What the tokens along one side of a tile span, padding and anchor keys left out.

    All [...], `documents` [..., words]. A side without such tokens has first_index and low_segment at the largest
    int32, last_index and high_segment at -1, and no documents.
    """

    first_index: jax.Array
    last_index: jax.Array
    low_segment: jax.Array
    high_segment: jax.Array
    documents: jax.Array
    full: jax.Array  # neither padding nor an anchor key in it


def span(segment_ids_t: jax.Array, index_t: jax.Array, num_anchors: int) -> Span:
    """Spans [...] of tokens [..., tile]; num_anchors is 0 for queries, whose anchors see like others."""
    counts_t = (segment_ids_t != PAD_SEGMENT) & (index_t >= num_anchors)

    def over(x_t, empty, reduce):
        return reduce(jnp.where(counts_t, x_t, empty), axis=-1)

    word = jnp.arange(_WORDS, dtype=jnp.int32)
    bit_t = jnp.left_shift(jnp.uint32(1), (segment_ids_t % _BITS).astype(jnp.uint32))
    in_word = counts_t[..., None] & ((segment_ids_t // _BITS % _WORDS)[..., None] == word)
    return Span(
        first_index=over(index_t, _FAR, jnp.min),
        last_index=over(index_t, -1, jnp.max),
        low_segment=over(segment_ids_t, _FAR, jnp.min),
        high_segment=over(segment_ids_t, -1, jnp.max),
        documents=jnp.bitwise_or.reduce(jnp.where(in_word, bit_t[..., None], jnp.uint32(0)), axis=-2),
        full=jnp.all(counts_t, axis=-1),
    )


def may_hold(q: Span, kv: Span, window: int | None = None) -> jax.Array:
    """Bool [...]: may the tile hold a pair that `allowed_in_tile` admits?

    Exact for documents that lie in one piece, in any number, and for interleaved ones up to 256 documents a row.
    Beyond that a tile without such a pair may be called live, and never the other way round.
    """
    causal = kv.first_index <= q.last_index
    ranges_meet = (kv.low_segment <= q.high_segment) & (q.low_segment <= kv.high_segment)
    share_document = jnp.any(q.documents & kv.documents, axis=-1)
    live = causal & ranges_meet & share_document
    if window is not None:
        live &= q.first_index - kv.last_index < window
    return live


def holds_all(q: Span, kv: Span, window: int | None = None) -> jax.Array:
    """Bool [...]: does `allowed_in_tile` admit every pair of the tile, so that it needs no mask?"""
    one_document = (q.low_segment == kv.high_segment) & (kv.low_segment == q.high_segment)
    whole = q.full & kv.full & one_document & (kv.last_index <= q.first_index)
    if window is not None:
        whole &= q.last_index - kv.first_index < window
    return whole


def padding_as_zeros(x_BT: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    """x [B, T, ...] with padding set to zero: a masked weight of 0 times NaN would be NaN."""
    real_BT = jnp.expand_dims(segment_ids_BT != PAD_SEGMENT, range(2, x_BT.ndim))
    return jnp.where(real_BT, x_BT, jnp.zeros((), x_BT.dtype))


def count_live_pairs(
    segment_ids_T: jax.Array, num_anchors: int, window: int | None = None, index_T: jax.Array | None = None
) -> jax.Array:
    """Number of (query, key) pairs that `allowed` admits in one row of self-attention, in O(T log T).

    A document's n-th token sees n of its own, wherever they lie in the row, less those that its window hides, and
    every anchor before it. The sum is float32: one part in 10^6, where int32 would overflow from 64K tokens on.

    Args:
      index_T: int32 place of each token in its row; None: tokens are in their row's order.
    """
    number_T = jnp.arange(segment_ids_T.shape[0], dtype=jnp.int32)
    index_T = number_T if index_T is None else index_T
    sorted_T = jnp.sort(segment_ids_T)
    rank_T = number_T - jnp.searchsorted(sorted_T, sorted_T) + 1
    pairs = jnp.sum(jnp.where(sorted_T != PAD_SEGMENT, rank_T, 0), dtype=jnp.float32)
    beyond_T = jnp.zeros_like(segment_ids_T, bool)
    if window is not None:
        pairs -= _hidden_by_window(segment_ids_T, index_T, window)
    for a in range(num_anchors):
        if window is not None:
            beyond_T = index_T - a >= window
        segment = jnp.sum(jnp.where(index_T == a, segment_ids_T, 0))
        counted_T = (segment_ids_T == segment) & ~beyond_T
        sees_T = (segment_ids_T != PAD_SEGMENT) & (index_T >= a) & ~counted_T
        pairs += jnp.where(segment != PAD_SEGMENT, jnp.sum(sees_T), 0)
    return pairs


def _hidden_by_window(segment_ids_T: jax.Array, index_T: jax.Array, window: int) -> jax.Array:
    """Pairs of one document that lie `window` or more apart."""
    until, place, segment_ids = _tokens_until(segment_ids_T, index_T, index_T - window)
    counts = (place >= segment_ids_T.shape[0]) & (segment_ids != PAD_SEGMENT)
    return jnp.sum(jnp.where(counts, until, 0), dtype=jnp.float32)


def count_visible(
    segment_ids_T: jax.Array, num_anchors: int, window: int | None = None, index_T: jax.Array | None = None
) -> jax.Array:
    """Number of keys that `allowed` admits for each query of one row of self-attention, int32 [T], in O(T log T).

    Args:
      index_T: int32 place of each token in its row; None: tokens are in their row's order.
    """
    number_T = jnp.arange(segment_ids_T.shape[0], dtype=jnp.int32)
    index_T = number_T if index_T is None else index_T

    def until(limit_T):
        answers, place, _ = _tokens_until(segment_ids_T, index_T, limit_T)
        return jax.lax.sort((place, answers), num_keys=1)[1][segment_ids_T.shape[0] :]

    visible_T, beyond_T = until(index_T), jnp.zeros_like(segment_ids_T, bool)
    if window is not None:
        visible_T -= until(index_T - window)
    for a in range(num_anchors):
        if window is not None:
            beyond_T = index_T - a >= window
        segment = jnp.max(jnp.where(index_T == a, segment_ids_T, PAD_SEGMENT))
        is_counted_T = (segment_ids_T == segment) & ~beyond_T
        visible_T += (segment != PAD_SEGMENT) & (index_T >= a) & ~is_counted_T
    return jnp.where(segment_ids_T != PAD_SEGMENT, visible_T, 0)


def _tokens_until(
    segment_ids_T: jax.Array, index_T: jax.Array, limit_T: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How many tokens of its own document lie at or before each token's limit, sorted by document.

    Every token also stands for this question. Tokens and questions are sorted together, by document and by index or
    limit, tokens first, and the tokens before each question counted.

    Returns:
      int32 [2T]: (the answers, the places, which are from T on those of questions, the documents).
    """
    T = segment_ids_T.shape[0]
    segment_ids, index = jnp.tile(segment_ids_T, 2), jnp.concatenate([index_T, limit_T])
    place = jnp.arange(2 * T, dtype=jnp.int32)
    segment_ids, _, place = jax.lax.sort((segment_ids, index, place), num_keys=3)
    before = jnp.cumsum((place < T).astype(jnp.int32))
    before_document = jnp.searchsorted(segment_ids, segment_ids) // 2  # each token stands twice
    return before - before_document, place, segment_ids
