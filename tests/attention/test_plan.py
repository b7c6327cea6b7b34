"""The plan: exactly the tiles that hold an allowed pair, in both orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask


def dense_live(mask: Mask, q_tile: int, kv_tile: int) -> np.ndarray:
    """Bool [B, I, J] from the dense mask: any allowed pair whose key is no anchor."""
    pairs = np.array(mask.materialize())
    pairs &= np.array(mask.kv_index_BS >= mask.num_anchors)[:, None, :]
    B, T, S = pairs.shape
    pairs = np.pad(pairs, ((0, 0), (0, -T % q_tile), (0, -S % kv_tile)))
    return pairs.reshape(B, -1, q_tile, pairs.shape[2] // kv_tile, kv_tile).any((2, 4))


T = 131  # a prime; one length, so that all drawn layouts share their compilations
jitted_live_tiles = jax.jit(live_tiles, static_argnums=(1, 2))


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
    np.testing.assert_array_equal(jitted_live_tiles(mask, *tiles), dense_live(mask, *tiles))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 300), min_size=T, max_size=T), st.integers(0, 1))
def test_no_live_tile_is_ever_missing(segments, anchors):
    mask = Mask.from_segments(jnp.array(segments, jnp.int32)[None], anchors)
    assert not (dense_live(mask, 8, 8) & ~np.array(jitted_live_tiles(mask, 8, 8))).any()


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


def test_both_orders_list_the_same_tiles():
    mask = Mask.from_segments(jnp.array(contiguous([20, 30, 13, 40], 9, 1))[None], 1)
    plan = jax.tree.map(np.array, jax.jit(make_plan, static_argnums=(1, 2))(mask, 16, 8))
    live = np.array(jitted_live_tiles(mask, 16, 8))[0]
    by_query = {(i, int(j)) for i in range(live.shape[0]) for j in plan.kv_tiles_BIJ[0, i, : plan.kv_counts_BI[0, i]]}
    by_key = {(int(i), j) for j in range(live.shape[1]) for i in plan.q_tiles_BJI[0, j, : plan.q_counts_BJ[0, j]]}
    assert by_query == by_key == set(zip(*(x.tolist() for x in np.nonzero(live)), strict=True))


@pytest.mark.parametrize("T", [2**16, 2**20])
def test_memory_is_far_below_a_dense_mask(T):
    """At 1M tokens a dense mask is 1 TB; the plan's arrays and temporaries stay below 1 GB."""
    mask = jax.eval_shape(lambda s: Mask.from_segments(s, 1), jax.ShapeDtypeStruct((1, T), jnp.int32))
    memory = jax.jit(lambda m: make_plan(m, 512, 512)).lower(mask).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 1e3 * T
