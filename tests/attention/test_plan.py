"""The plan: exactly the tiles that hold an allowed pair, in both orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.attention import attention
from anchorjax.attention import plan as plan_lib
from anchorjax.attention.plan import (
    FIRST_OF_KV,
    FIRST_OF_Q,
    LAST_OF_KV,
    LAST_OF_Q,
    NEEDS_MASK,
    classify_tiles,
    make_plan,
    unpack,
)
from anchorjax.masks import Mask


def dense_live(mask: Mask, q_tile: int, kv_tile: int) -> np.ndarray:
    """Bool [B, I, J] from the dense mask: any allowed pair whose key is no anchor."""
    pairs = np.array(mask.materialize())
    pairs &= np.array(mask.kv_index_BS >= mask.num_anchors)[:, None, :]
    B, T, S = pairs.shape
    pairs = np.pad(pairs, ((0, 0), (0, -T % q_tile), (0, -S % kv_tile)))
    return pairs.reshape(B, -1, q_tile, pairs.shape[2] // kv_tile, kv_tile).any((2, 4))


T = 131  # a prime; one length, so that all drawn layouts share their compilations
jitted_classify = jax.jit(classify_tiles, static_argnums=(1, 2))


def live_tiles(mask: Mask, q_tile: int, kv_tile: int) -> np.ndarray:
    return np.array(jitted_classify(mask, q_tile, kv_tile)[0])


def contiguous(lengths: list[int], pads: int, anchors: int) -> np.ndarray:
    """T segment ids: anchors, the documents (the last one to the end), pads."""
    documents = np.pad(np.repeat(np.arange(len(lengths)) + 1, lengths), (0, T), mode="edge")
    return np.concatenate([np.zeros(anchors, int), documents[: T - anchors - pads], np.full(pads, -1)]).astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(0, 20),
    st.integers(0, 2),
    st.sampled_from([(8, 8), (8, 16), (16, 8)]),
)
def test_contiguous_documents_give_exactly_the_live_tiles(lengths, pads, anchors, tiles):
    mask = Mask.from_segments(jnp.array(contiguous(lengths, pads, anchors))[None], anchors)
    np.testing.assert_array_equal(live_tiles(mask, *tiles), dense_live(mask, *tiles))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 300), min_size=T, max_size=T), st.integers(0, 1))
def test_no_live_tile_is_ever_missing(segments, anchors):
    mask = Mask.from_segments(jnp.array(segments, jnp.int32)[None], anchors)
    assert not (dense_live(mask, 8, 8) & ~live_tiles(mask, 8, 8)).any()


def test_interleaved_pieces_skip_what_lies_between():
    """Documents 1 and 3 in turns: their ranges overlap with document 2's tile, their sets do not."""
    segments = np.repeat([1, 3, 2, 1, 3], 8).astype(np.int32)
    mask = Mask.from_segments(jnp.array(segments)[None], 0)
    np.testing.assert_array_equal(live_tiles(mask, 8, 8), dense_live(mask, 8, 8))


def test_reordered_queries_keep_their_tiles():
    segments = contiguous([20, 30, 13], 0, 1)
    index = np.arange(T, dtype=np.int32)
    order = np.roll(np.arange(T), 48)
    mask = Mask(*(jnp.array(x)[None] for x in (segments[order], segments, index[order], index)), num_anchors=1)
    np.testing.assert_array_equal(live_tiles(mask, 16, 16), dense_live(mask, 16, 16))


def entries(visits) -> list[list[tuple[int, int, int]]]:
    """(query tile, key tile, flags) of each outer tile's entries."""
    flat = np.array(visits.entries_CP).reshape(-1)
    spans = zip(np.array(visits.starts_1R[0]), np.array(visits.lengths_1R[0]), strict=True)
    return [[tuple(int(x) for x in unpack(entry)) for entry in flat[s : s + n]] for s, n in spans]


@pytest.mark.parametrize("chunk", [2**16, 64])
def test_both_orders_list_the_live_tiles_with_their_ends_flagged(chunk, monkeypatch):
    """Two rows, the second dead: live tiles, one dead tile for each query tile without, and by key for key tiles."""
    monkeypatch.setattr(plan_lib, "_CHUNK", chunk)
    segments = np.stack([contiguous([20, 30, 13, 40], 40, 1), np.full(T, -1)])
    mask = Mask.from_segments(jnp.array(segments), 1)
    plan = jax.jit(make_plan, static_argnums=(1, 2))(mask, 16, 8)
    I, J = -(-T // 16), -(-T // 8)
    live = {
        (b * I + i, b * J + j)
        for b, i, j in zip(*(x.tolist() for x in np.nonzero(live_tiles(mask, 16, 8))), strict=True)
    }
    for visits, side, first, last in (
        (plan.by_query, 0, FIRST_OF_Q, LAST_OF_Q),
        (plan.by_key, 1, FIRST_OF_KV, LAST_OF_KV),
    ):
        lists = entries(visits)
        assert visits.entries_CP.shape[0] == (1 if chunk == 2**16 else -(-len(lists) // visits.tiles_per_chunk))
        assert int(visits.counts_C1.sum()) == sum(map(len, lists))
        for outer, line in enumerate(lists):
            assert line and [entry[side] for entry in line] == [outer] * len(line)
            inner = [entry[1 - side] for entry in line]
            assert inner == sorted(set(inner))
            assert [n for n, entry in enumerate(line) if entry[2] & first] == [0]
            assert [n for n, entry in enumerate(line) if entry[2] & last] == [len(line) - 1]
    visited = [{entry[:2] for line in entries(visits) for entry in line} for visits in (plan.by_query, plan.by_key)]
    assert live <= visited[0] <= visited[1]
    live_q, live_kv = ({tile[side] for tile in live} for side in (0, 1))
    assert visited[0] - live == {(q, q // I * J) for q in range(2 * I) if q not in live_q}
    assert visited[1] - visited[0] <= {(kv // J * I, kv) for kv in range(2 * J) if kv not in live_kv}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.integers(0, 20),
    st.integers(0, 2),
    st.sampled_from([None, 9, 30]),
)
def test_tiles_without_a_mask_are_wholly_visible_and_windows_kill_tiles(lengths, pads, anchors, window):
    mask = Mask.from_segments(jnp.array(contiguous(lengths, pads, anchors))[None], anchors, window)
    live, needs_mask = (np.array(x) for x in jitted_classify(mask, 8, 16))
    np.testing.assert_array_equal(live, dense_live(mask, 8, 16))
    pairs = np.array(mask.materialize()) & np.array(mask.kv_index_BS >= anchors)[:, None, :]
    pairs = np.pad(pairs, ((0, 0), (0, -T % 8), (0, -T % 16))).reshape(1, live.shape[1], 8, live.shape[2], 16)
    np.testing.assert_array_equal(needs_mask[live], ~pairs.all((2, 4))[live])


def test_flag_of_masks_reaches_the_entries():
    mask = Mask.from_segments(jnp.zeros((1, 64), jnp.int32), 0)
    plan = make_plan(mask, 16, 16)
    for q, kv, flags in (entry for line in entries(plan.by_query) for entry in line):
        assert bool(flags & NEEDS_MASK) == (q == kv)


def test_the_last_tile_of_all_is_an_entry_like_any_other():
    """With all of its flags it is the largest int32 there is."""
    last = plan_lib.MAX_TILES - 1
    mask = Mask.from_segments(jnp.zeros((plan_lib.MAX_TILES, 16), jnp.int32), 0)
    plan = jax.jit(make_plan, static_argnums=(1, 2))(mask, 16, 16)
    flags = FIRST_OF_Q | LAST_OF_Q | FIRST_OF_KV | LAST_OF_KV | NEEDS_MASK
    for visits in (plan.by_query, plan.by_key):
        entry = visits.entries_CP.reshape(-1)[visits.starts_1R[0, last]]
        assert [int(x) for x in unpack(entry)] == [last, last, flags]
    q, k, v = (jax.random.normal(key, (plan_lib.MAX_TILES, 16, 1, 8)) for key in jax.random.split(jax.random.key(0), 3))
    attend = jax.jit(attention, static_argnames="implementation")
    out = attend(q, k, v, plan, implementation="xla")
    wanted = attend(q[-1:], k[-1:], v[-1:], jax.tree.map(lambda x: x[-1:], mask), implementation="reference")
    np.testing.assert_allclose(out[-1:], wanted, atol=1e-5)


def test_too_many_tiles_are_refused():
    mask = jax.eval_shape(lambda s: Mask.from_segments(s, 1), jax.ShapeDtypeStruct((1, 2**20), jnp.int32))
    with pytest.raises(ValueError, match="use larger tiles"):
        jax.eval_shape(lambda mask: make_plan(mask, 64, 64), mask)


@pytest.mark.parametrize("T", [2**16, 2**20])
def test_memory_is_far_below_a_dense_mask(T):
    """At 1M tokens a dense mask is 1 TB; the plan's arrays and temporaries stay below 1 GB."""
    mask = jax.eval_shape(lambda s: Mask.from_segments(s, 1), jax.ShapeDtypeStruct((1, T), jnp.int32))
    memory = jax.jit(lambda m: make_plan(m, 512, 512)).lower(mask).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 1e3 * T
