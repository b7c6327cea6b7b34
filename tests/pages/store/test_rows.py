"""Live tiles and masks of rows against the dense mask."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from anchorjax import data
from anchorjax.attention.plan import make_plan
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.masks import Mask, anchors_of
from anchorjax.pages.store import rows as lib
from tests import tiny
from tests.pages.store.test_lengths import STORES

TILE = 8


def dense(segment_ids_T: np.ndarray, num_anchors: int) -> np.ndarray:
    return np.asarray(Mask.from_segments(jnp.asarray(segment_ids_T[None]), num_anchors).materialize()[0])


def tiles_with_a_pair(segment_ids_T: np.ndarray, num_anchors: int) -> int:
    allowed_TT = dense(segment_ids_T, num_anchors) & (np.arange(len(segment_ids_T)) >= num_anchors)
    I = len(segment_ids_T) // TILE
    return int(allowed_TT.reshape(I, TILE, I, TILE).any(axis=(1, 3)).sum())


def packer_of(store, mask="anchor", **changes):
    changes = {f"data__{key}": value for key, value in changes.items()}
    return data.row_packer(store, ByteTokenizer(), tiny.config(data__mask=mask, **changes).data, 1)


@hypothesis.given(STORES, st.sampled_from(["anchor", "intra_doc"]), st.sampled_from([0, 3]))
@hypothesis.settings(max_examples=25, deadline=None)
def test_live_tiles_are_those_that_hold_a_pair(store, mask, interleave):
    packer = packer_of(store, mask, seq_len=48, interleave=interleave, packing="best_fit")
    found = lib.count_live_tiles(packer, TILE, TILE, seed=2)
    segments = [packer.row(row).segment_ids_T for row in lib.draw_rows(packer.rows_per_epoch, lib.MOST_ROWS, 2)]
    num_anchors = anchors_of(mask)
    assert found.live == sum(tiles_with_a_pair(one, num_anchors) for one in segments)
    assert found.full == sum(tiles_with_a_pair(np.where(one < 0, -1, 0), 0) for one in segments)
    assert (found.rows, found.of_rows) == (len(segments), packer.rows_per_epoch)
    assert found.share == found.live / found.full == pytest.approx(1 / found.speed_up)


def test_live_tiles_are_those_that_a_plan_visits():
    """A plan also visits a dead tile for a query or key tile without a live one: here there is none."""
    segment_ids_T = np.repeat([0, 1, 2, 3], [1, 30, 7, 26]).astype(np.int32)
    plan = make_plan(Mask.from_segments(jnp.asarray(segment_ids_T[None]), 1), TILE, TILE)
    assert int(plan.by_query.lengths_1R.sum()) == lib._count(segment_ids_T, 1, TILE, TILE)


@pytest.mark.parametrize(("length", "tile", "expected"), [(2**20, 128, True), (2**20 + 1, 128, False), (64, 8, True)])
def test_rows_with_more_tiles_than_a_plan_holds_are_left_out(length, tile, expected):
    assert lib.countable(length, tile, 512) == lib.countable(length, 512, tile) == expected


@hypothesis.given(STORES, st.sampled_from(["anchor", "intra_doc", "full"]), st.sampled_from([0, 3]))
@hypothesis.settings(max_examples=25, deadline=None)
def test_a_picture_is_the_mask(store, mask, interleave):
    segment_ids_T = packer_of(store, mask, seq_len=48, interleave=interleave).row(0).segment_ids_T
    num_anchors = anchors_of(mask)
    expected_TT = dense(segment_ids_T, num_anchors)
    picture_PP = lib.picture(segment_ids_T, num_anchors)
    np.testing.assert_array_equal(picture_PP != lib.HIDDEN, expected_TT)
    np.testing.assert_array_equal(picture_PP[:, 0] == lib.ANCHOR, expected_TT[:, 0] & (mask == "anchor"))
    assert not (picture_PP[:, 1:] == lib.ANCHOR).any()
    few = lib.picture(segment_ids_T, num_anchors, most=16)
    np.testing.assert_array_equal(few, picture_PP[::3, ::3])


def test_a_picture_of_a_long_row_is_small():
    T = 2**24
    picture_PP = lib.picture(np.repeat(np.arange(4, dtype=np.int32), T // 4), 1)
    assert picture_PP.shape == (lib.PICTURE, lib.PICTURE)
    assert (picture_PP[:, 0] == lib.ANCHOR).all()
    assert (np.diag(picture_PP)[1:] == lib.SEEN).all()


def test_rows_are_drawn_with_a_seed():
    assert lib.draw_rows(3, 5, 0) == [0, 1, 2]
    drawn = lib.draw_rows(1000, 5, 0)
    assert drawn == lib.draw_rows(1000, 5, 0) == sorted(set(drawn)) != lib.draw_rows(1000, 5, 1)
    assert len(drawn) == 5
