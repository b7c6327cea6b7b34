"""The order of tokens and rows that evens out the work of devices, against counts over the dense mask."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.attention.plan import classify_tiles
from anchorjax.data.rows import balance
from anchorjax.data.rows.balance import Layout, deal, live_tiles
from anchorjax.masks import Mask
from anchorjax.types import CONTEXT_LAYOUTS

T = 96


@st.composite
def rows(draw):
    """Segment ids [T] behind an anchor: documents in one piece, or interleaved, with or without padding; or all one."""
    if draw(st.integers(0, 5)) == 0:
        return np.zeros(T, np.int32)
    lengths = draw(st.lists(st.integers(1, 50), min_size=1, max_size=20))
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    if draw(st.booleans()):
        pieces = np.array_split(ids, 7)
        ids = np.concatenate([pieces[n] for n in draw(st.permutations(range(7)))])
    return np.concatenate([[0], ids, np.full(T, -1)])[:T].astype(np.int32)


layouts = st.builds(
    Layout,
    name=st.sampled_from(CONTEXT_LAYOUTS),
    shards=st.sampled_from([1, 2, 4, 8]),
    tile=st.sampled_from([1, 2, 3, 4, 8, 32]),
    windows=st.sampled_from([((None, 1),), ((None, 1), (10, 5)), ((3, 2),)]),
)


def dense_tiles(segment_ids_T, tile: int) -> np.ndarray:
    """Live tiles by query tile, from every pair; the anchor is a document that has no tile of its own."""
    segments_BT = jnp.asarray(np.where(np.arange(T) == 0, -1, segment_ids_T))[None]
    seen_TT = np.asarray(Mask.from_segments(segments_BT, 0).materialize()[0])
    return seen_TT.reshape(T // tile, tile, T // tile, tile).any((1, 3)).sum(1)


@settings(max_examples=100, deadline=None)
@given(rows(), st.sampled_from([2, 3, 4, 8, 32]))
def test_live_tiles_are_those_of_the_dense_mask(segment_ids_T, tile):
    found_I = live_tiles(segment_ids_T, tile)
    wanted_I = dense_tiles(segment_ids_T, tile)
    assert found_I[1:].tolist() == wanted_I[1:].tolist()
    assert found_I[0] in (wanted_I[0], 1)  # a first tile of the anchor and padding alone counts as one


@settings(max_examples=50, deadline=None)
@given(rows(), st.sampled_from([4, 8]), st.sampled_from([1, 3, 8, 9, 10, 40]))
def test_live_tiles_under_a_window_are_those_of_the_plan(segment_ids_T, tile, window):
    mask = Mask.from_segments(jnp.asarray(segment_ids_T)[None], 1, window)
    wanted_I = np.asarray(classify_tiles(mask, tile, tile)[0][0].sum(-1))
    assert live_tiles(segment_ids_T, tile, ((window, 1),))[1:].tolist() == wanted_I[1:].tolist()
    both = live_tiles(segment_ids_T, tile, ((None, 2), (window, 5)))
    assert (
        both.tolist()
        == (2 * live_tiles(segment_ids_T, tile) + 5 * live_tiles(segment_ids_T, tile, ((window, 1),))).tolist()
    )


@settings(max_examples=200, deadline=None)
@given(rows(), layouts)
def test_an_order_holds_each_token_once_and_begins_with_the_anchor(segment_ids_T, layout):
    order_T = layout.order(segment_ids_T)
    assert order_T.dtype == np.int32 and order_T[0] == 0
    assert np.array_equal(np.sort(order_T), np.arange(T))
    assert np.array_equal(order_T, layout.order(segment_ids_T.copy()))
    by_shard_CT = order_T.reshape(layout.shards, -1)
    assert np.all(np.diff(by_shard_CT, axis=1) > 0), "each device's tokens are in the row's order"
    if layout.name == "contiguous" or layout.shards == 1:
        assert np.array_equal(order_T, np.arange(T))


@settings(max_examples=100, deadline=None)
@given(rows(), layouts)
def test_the_most_loaded_device_has_little_more_than_the_mean(segment_ids_T, layout):
    """A chunk and the slack. So it has at most that much more than with the same chunks in the row's order."""
    layout = dataclasses.replace(layout, name="documents")
    chunks = layout.shards * balance.chunks_of_shard(T // layout.shards, layout.tile)
    work_K = layout._work_of_chunks(segment_ids_T)
    assert len(work_K) == chunks
    place_K = layout.order(segment_ids_T).reshape(chunks, -1)[:, 0] // (T // chunks)
    load_C = work_K[place_K].reshape(layout.shards, -1).sum(1)
    more = work_K.max() + balance.SLACK * load_C.mean()
    assert load_C.max() - load_C.mean() <= more
    assert load_C.max() <= work_K.reshape(layout.shards, -1).sum(1).max() + more


def test_documents_of_tiles():
    segment_ids_T = np.array([0, 5, 5, 2, 2, 5, 7, -1, -1, -1, -1, -1])
    assert balance.documents_of_tiles(segment_ids_T, 3) == [{0, 1}, {1, 2}, {3}, set()]


def test_a_document_lies_on_few_devices_where_work_allows():
    """Fewer than plain LPT puts it on, on rows of uneven documents."""
    rng, spread = np.random.default_rng(0), {True: 0, False: 0}
    for _ in range(20):
        segment_ids_T = np.repeat(np.arange(40), rng.geometric(1 / 30, 40) + 8)[:1024].astype(np.int32)
        segment_ids_T = np.pad(segment_ids_T, (0, 1024 - len(segment_ids_T)), constant_values=-1)
        work_K, documents_K = live_tiles(segment_ids_T, 16), balance.documents_of_tiles(segment_ids_T, 16)
        for kept in spread:
            for chunks in deal(work_K, 8, documents_K if kept else None):
                spread[kept] += len(set.union(*(documents_K[k] for k in chunks)))
    assert spread[True] < 0.9 * spread[False]


@given(st.lists(st.integers(0, 1000), min_size=8, max_size=8), st.sampled_from([1, 2, 4, 8]))
def test_dealing_gives_equal_numbers(work, shards):
    dealt = deal(np.array(work), shards)
    assert dealt.shape == (shards, 8 // shards) and sorted(dealt.ravel().tolist()) == list(range(8))
    # LPT: what is dealt to a shard behind its first found no shard with room that had less work.
    assert sorted(work)[-shards:] == sorted(max(work[k] for k in some) for some in dealt)


def test_a_row_of_one_document_is_even_in_zigzag_and_by_documents():
    row, live_I = np.zeros(1024, np.int32), live_tiles(np.zeros(1024, np.int32), 8)
    loads = {}
    for name in CONTEXT_LAYOUTS:
        order_T = Layout(name, 4, 8).order(row)
        loads[name] = live_I[order_T[::8] // 8].reshape(4, -1).sum(1)
    assert len(set(loads["zigzag"])) == 1 and np.ptp(loads["documents"]) <= 0.01 * loads["documents"].mean()
    assert loads["contiguous"].max() > 1.7 * loads["contiguous"].mean()


@pytest.mark.parametrize(
    ("tokens", "tile", "chunks"),
    [
        (2**14, 512, 8),
        (2**12, 512, 8),
        (2**11, 512, 4),
        (1536, 512, 3),
        (1280, 512, 2),
        (512, 512, 1),
        (100, 512, 1),
        (97, 8, 1),
    ],
)
def test_chunks_are_whole_tiles_where_the_row_has_them(tokens, tile, chunks):
    assert balance.chunks_of_shard(tokens, tile) == chunks


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 1000), min_size=16, max_size=16), st.sampled_from([(1, 4), (2, 1), (4, 2), (8, 2), (16, 1)])
)
def test_rows_of_like_work_share_a_micro_batch(work, cut):
    """As `training.step` cuts a batch: no row of a part has more work than any of the part before."""
    groups, parts = cut
    order_B = Layout(groups=groups, parts=parts).order_of_rows(np.array(work))
    assert sorted(order_B.tolist()) == list(range(16))
    if groups in (1, 16):
        assert order_B.tolist() == list(range(16))
        return
    by_part = [np.array(work)[order_B].reshape(16 // parts, parts)[:, part] for part in range(parts)]
    for before, after in itertools.pairwise(by_part):
        assert before.min() >= after.max()
    for of_part in by_part:
        load = of_part.reshape(groups, -1).sum(1)
        assert load.max() - load.mean() <= of_part.max()
