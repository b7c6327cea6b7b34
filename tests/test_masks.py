"""The rule, drawn by hand, and what is derived from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anchorjax import masks
from anchorjax.masks import Mask, allowed, count_live_pairs, count_visible

ANCHOR = """
x.....
xx....
xxx...
xxxx..
x...x.
x...xx
"""
INTRA_DOC = """
x.....
.x....
.xx...
.xxx..
....x.
....xx
"""
FULL = """
x.....
xx....
xxx...
xxxx..
xxxxx.
xxxxxx
"""
PADS = """
x.....
xx....
xxx...
x..x..
......
......
"""


def drawing(text: str) -> np.ndarray:
    return np.array([[cell == "x" for cell in line] for line in text.split()])


@pytest.mark.parametrize(
    ("segments", "num_anchors", "expected"),
    [
        ([0, 1, 1, 1, 2, 2], 1, ANCHOR),
        ([0, 1, 1, 1, 2, 2], 0, INTRA_DOC),
        ([0, 0, 0, 0, 0, 0], 0, FULL),
        ([0, 1, 1, 2, -1, -1], 1, PADS),
    ],
)
def test_mask_equals_its_drawing(segments, num_anchors, expected):
    mask = Mask.from_segments(jnp.array([segments], jnp.int32), num_anchors)
    np.testing.assert_array_equal(mask.materialize()[0], drawing(expected))


def test_a_window_hides_what_lies_further_back_but_no_anchor():
    mask = Mask.from_segments(jnp.array([[0, 1, 1, 1, 2, 2]], jnp.int32), 1, window=2)
    np.testing.assert_array_equal(mask.materialize()[0], drawing("x..... xx.... xxx... x.xx.. x...x. x...xx"))


def test_interleaved_documents_see_their_own_pieces():
    mask = Mask.from_segments(jnp.array([[0, 1, 2, 1, 2]], jnp.int32), 1)
    expected = drawing("x.... xx... x.x.. xx.x. x.x.x")
    np.testing.assert_array_equal(mask.materialize()[0], expected)


def test_two_anchors_are_causal_among_themselves():
    mask = Mask.from_segments(jnp.array([[0, 0, 1, 2]], jnp.int32), 2)
    np.testing.assert_array_equal(mask.materialize()[0], drawing("x... xx.. xxx. xx.x"))


def test_index_and_not_place_decides():
    """A row whose tokens are shuffled keeps each pair's answer."""
    segments, index = np.array([0, 1, 1, 1, 2, 2], np.int32), np.arange(6, dtype=np.int32)
    order = np.array([4, 2, 0, 5, 1, 3])
    shuffled = Mask(*(jnp.array(x)[None] for x in (segments[order], segments, index[order], index)), num_anchors=1)
    np.testing.assert_array_equal(shuffled.materialize()[0], drawing(ANCHOR)[order])
    segments_BT, index_BT = jnp.array(segments[order])[None], jnp.array(order, jnp.int32)[None]
    shuffled = Mask.from_segments(segments_BT, 1, index_BT=index_BT)
    np.testing.assert_array_equal(shuffled.materialize()[0], drawing(ANCHOR)[order][:, order])


def test_pad_segment_sees_no_anchor_and_no_other_pad():
    assert not allowed(5, 0, -1, 0, 1)
    assert not allowed(5, 4, -1, -1, 0)


jitted_count = jax.jit(count_live_pairs, static_argnames=("num_anchors", "window"))
jitted_visible = jax.jit(count_visible, static_argnames=("num_anchors", "window"))


@settings(max_examples=200, deadline=None)
@given(
    segments=st.integers(0, 40).flatmap(lambda most: st.lists(st.integers(-1, most), min_size=40, max_size=40)),
    num_anchors=st.integers(0, 3),
    window=st.sampled_from([None, 1, 2, 7, 39, 40, 100]),
    order=st.permutations(range(40)),
)
@example(segments=[0] * 40, num_anchors=3, window=2, order=list(range(40)))
@example(segments=[1, 2] * 20, num_anchors=2, window=3, order=list(range(40))[::-1])
def test_live_pairs_and_visible_keys_are_those_of_the_dense_mask(segments, num_anchors, window, order):
    """Few documents in many pieces or many in few, pads between them; anchors that are documents of others too."""
    segments_T, order_T = jnp.array(segments, jnp.int32), jnp.array(order, jnp.int32)
    dense = Mask.from_segments(segments_T[None], num_anchors, window).materialize()
    assert int(jitted_count(segments_T, num_anchors=num_anchors, window=window)) == int(dense.sum())
    found = jitted_count(segments_T[order_T], num_anchors=num_anchors, window=window, index_T=order_T)
    assert int(found) == int(dense.sum())
    visible_T = jitted_visible(segments_T, num_anchors=num_anchors, window=window)
    np.testing.assert_array_equal(visible_T, dense[0].sum(-1))
    visible_T = jitted_visible(segments_T[order_T], num_anchors=num_anchors, window=window, index_T=order_T)
    np.testing.assert_array_equal(visible_T, dense[0].sum(-1)[order_T])


@st.composite
def drawn_masks(draw):
    """Self-attention of two rows of 24: documents in one piece or many, padding, anchors, windows, shuffled queries."""
    T = 24
    ids = st.integers(-1, draw(st.integers(0, 4)))
    rows = [draw(st.lists(ids, min_size=T, max_size=T)) for _ in range(2)]
    if draw(st.booleans()):
        rows = [sorted(row, key=lambda segment: segment % 9) for row in rows]  # in one piece, padding last
    segments, index = np.array(rows, np.int32), np.tile(np.arange(T, dtype=np.int32), (2, 1))
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(T) if draw(st.booleans()) else np.arange(T)
    arrays = segments[:, order], segments, index[:, order], index
    return Mask(*map(jnp.asarray, arrays), draw(st.integers(0, 3)), draw(st.sampled_from([None, 1, 2, 7, 40])))


def without_anchors(mask: Mask) -> np.ndarray:
    return np.array(mask.materialize()) & np.array(mask.kv_index_BS >= mask.num_anchors)[:, None]


@settings(max_examples=150, deadline=None)
@given(drawn_masks())
def test_the_form_inside_a_tile_and_that_of_anchors_make_the_dense_one(mask):
    """Each pair of the dense mask is admitted by one of the two, according to its key."""
    q_index, q_segment = (np.array(x)[:, :, None] for x in (mask.q_index_BT, mask.q_segment_ids_BT))
    kv_index, kv_segment = (np.array(x)[:, None] for x in (mask.kv_index_BS, masks.tile_segment_ids(mask)))
    inside = masks.allowed_in_tile(q_index, kv_index, q_segment, kv_segment, mask.window)
    np.testing.assert_array_equal(inside, without_anchors(mask))
    real = np.array(mask.kv_segment_ids_BS)[:, None] != -1
    anchors = masks.sees_anchor(q_index, q_segment, kv_index) & real & (kv_index < mask.num_anchors)
    np.testing.assert_array_equal(inside | anchors, mask.materialize())


@settings(max_examples=150, deadline=None)
@given(drawn_masks(), st.sampled_from([(1, 1), (4, 4), (4, 6), (8, 3)]))
def test_the_forms_of_a_tile_bound_the_dense_one(mask, tile):
    """`holds_all` is exact, and so is `may_hold` for a tile of one pair; no tile with a pair is ever left out."""
    q, kv = (
        masks.span(segments.reshape(2, -1, size), index.reshape(2, -1, size), anchors)
        for segments, index, anchors, size in (
            (mask.q_segment_ids_BT, mask.q_index_BT, 0, tile[0]),
            (mask.kv_segment_ids_BS, mask.kv_index_BS, mask.num_anchors, tile[1]),
        )
    )
    q, kv = jax.tree.map(lambda x: x[:, :, None], q), jax.tree.map(lambda x: x[:, None], kv)
    live, whole = (np.array(form(q, kv, mask.window)) for form in (masks.may_hold, masks.holds_all))
    pairs = without_anchors(mask).reshape(2, 24 // tile[0], tile[0], 24 // tile[1], tile[1])
    assert not (pairs.any((2, 4)) & ~live).any()
    if tile == (1, 1):
        np.testing.assert_array_equal(live, pairs.any((2, 4)))
    assert not (whole & ~pairs.all((2, 4))).any()
    if np.array_equal(mask.q_index_BT, mask.kv_index_BS):
        np.testing.assert_array_equal(whole & live, pairs.all((2, 4)))
