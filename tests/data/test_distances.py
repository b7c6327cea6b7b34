"""Distances of rows against the dense mask, and exact formulas against enumeration and drawn rows."""

import fractions
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax import types
from anchorjax.data.rows import distances as lib
from anchorjax.data.rows.packing import RowPacker
from anchorjax.masks import allowed, anchors_of
from tests.data.test_packing import ANCHOR, PAD
from tests.data.test_positions import LAYOUTS, packer_of, pose_config, rows_of, store_of


def brute(row, num_anchors, size, window=None):
    """Pairs at each distance below `size`, one by one: of document keys, of anchor keys."""
    T = np.arange(len(row.segment_ids_T))
    segments = row.segment_ids_T
    seen_TT = allowed(T[:, None], T[None], segments[:, None], segments[None], num_anchors, window)
    apart_TT = row.positions_T[:, None] - row.positions_T[None]
    seen_TT &= apart_TT >= 0
    is_anchor_TT = np.broadcast_to(T[None] < num_anchors, seen_TT.shape)
    return [np.bincount(apart_TT[seen_TT & keys], minlength=size) for keys in (~is_anchor_TT, is_anchor_TT)]


def epoch_of(packer):
    return range(packer.rows_per_epoch)


@pytest.mark.parametrize("positions", ["continue", "reset", "pose"])
@settings(max_examples=60, deadline=None)
@given(**LAYOUTS, window=st.none() | st.integers(1, 24))
def test_counts_are_those_of_every_pair(positions, lengths, seq_len, more, chunks, epoch, window, **options):
    """Any mask, packing, interleaving and window; documents of many runs, and distances in any order."""
    more = more if positions in types.SKIPPING else 0
    packer = packer_of(lengths, seq_len, more, chunks, positions=positions, **options)
    num_anchors, size = anchors_of(packer.mask), seq_len + more
    distances_D = np.random.default_rng(0).permutation(size)
    for row in rows_of(packer, epoch):
        found = lib.count(row.segment_ids_T, row.positions_T, num_anchors, distances_D, window)
        for got_D, expected in zip(found, brute(row, num_anchors, size, window), strict=True):
            np.testing.assert_array_equal(got_D, expected[distances_D])


def test_counts_do_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    positions_T = np.concatenate([[0], np.cumsum(rng.integers(1, 3, 299))])
    segment_ids_T = rng.integers(0, 4, 300)
    expected = lib.count(segment_ids_T, positions_T, 1, np.arange(600))
    monkeypatch.setattr(lib, "_BLOCK", 7)
    for got_D, whole_D in zip(lib.count(segment_ids_T, positions_T, 1, np.arange(600)), expected, strict=True):
        np.testing.assert_array_equal(got_D, whole_D)


def test_a_long_row_takes_milliseconds():
    """128K tokens have 8.6e9 pairs."""
    T = 2**17
    segment_ids_T = np.repeat(np.arange(1 + 1000), [1] + [131] * 1000)[:T]
    started = time.process_time()
    documents_D, anchor_D = lib.count(segment_ids_T, np.arange(len(segment_ids_T)), 1, np.arange(T))
    assert time.process_time() - started < 0.5
    assert documents_D.sum() == 1000 * 131 * 132 // 2 and anchor_D.sum() == len(segment_ids_T)


@pytest.mark.parametrize("mask", types.MASKS)
@pytest.mark.parametrize("positions", ["continue", "reset"])
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    seq_len=st.integers(2, 24),
    packing=st.sampled_from(types.PACKINGS),
    boundary=st.booleans(),
)
def test_planned_is_the_mean_over_an_epoch(mask, positions, lengths, seq_len, packing, boundary):
    options = {"positions": positions, "packing": packing, "mask": mask, "interleave": 0, "seed": 3}
    packer = packer_of(lengths, seq_len, 0, 2, **options)
    if not lib.is_planned(mask, positions, 0):
        with pytest.raises(ValueError, match="no exact distances"):
            lib.planned(packer.plan(0), mask, positions, np.arange(3))
        return
    distances_D = np.arange(seq_len + 2)
    exact = lib.planned(packer.plan(0), mask, positions, distances_D)
    found = lib.measure(packer, epoch_of(packer), distances_D)
    assert (exact.anchor is None) == (found.anchor is None) == (mask != "anchor")
    for left, right in [(exact.documents, found.documents), (exact.anchor, found.anchor)]:
        if left is not None:
            np.testing.assert_allclose(left.probability_D, right.probability_D, atol=1e-12)
            np.testing.assert_allclose(left.pairs_D, right.pairs_D, atol=1e-9)


def test_planned_oracles():
    """STRING's f(d) = sum max(l - d, 0) for (a b c)(d e); one document a row has T - d pairs under a full mask."""
    packer = packer_of([3, 2], 6, 0, 2, positions="continue", mask="intra_doc", interleave=0, seed=0)
    found = lib.planned(packer.plan(0), "intra_doc", "continue", np.arange(4))
    assert found.documents.pairs_D.tolist() == [1 + 5, 3, 1, 0]
    assert found.documents.probability_D.tolist() == [1, 1, 1, 0]
    anchored = lib.planned(packer.plan(0), "anchor", "continue", np.arange(7))
    assert anchored.documents.pairs_D.tolist() == [5, 3, 1, 0, 0, 0, 0]
    assert anchored.anchor.probability_D.tolist() == [1, 1, 1, 1, 1, 1, 0]
    assert anchored.documents.pairs_D.sum() + anchored.anchor.pairs_D.sum() == 15, "of 21, as the mask's oracle says"
    plain = lib.planned(packer.plan(0), "full", "continue", np.arange(7))
    assert plain.documents.pairs_D.tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert plain.documents.probability_D.tolist() == [1, 1, 1, 1, 1, 1, 0]


def enumerate_pose(lengths, budget, size, cuts_of=lambda n: range(1, n)):
    """The curves of every order of documents, cut and skip, in fractions."""
    held, pairs = [fractions.Fraction(0)] * size, [fractions.Fraction(0)] * size
    drawing = [n for n in lengths if n > 1]
    alone = len(lengths) - len(drawing)
    orders = list(itertools.permutations(drawing))

    def go(order, left, chance, counts):
        if not order:
            for d, number in enumerate(counts):
                held[d] += chance * (number > 0)
                pairs[d] += chance * number
            return
        n, cuts = order[0], list(cuts_of(order[0]))
        for cut, skip in itertools.product(cuts, range(left + 1)):
            at = [k + (skip if k >= cut else 0) for k in range(n)]
            more = np.bincount([q - k for q in at for k in at if k <= q], minlength=size)
            go(order[1:], left - skip, chance / len(cuts) / (left + 1), counts + more)

    for order in orders:
        go(order, budget, fractions.Fraction(1, len(orders)), alone * (np.arange(size) == 0))
    return np.array(held, float), np.array(pairs, float)


@pytest.mark.parametrize(
    ("lengths", "budget"), [([3], 3), ([6], 4), ([2], 0), ([1], 5), ([3, 2], 5), ([4, 1, 4], 4), ([2, 3, 4], 3)]
)
def test_pose_is_the_sum_over_all_its_draws(lengths, budget):
    size = sum(lengths) + budget + 3
    found = lib.pose(lengths, budget, np.arange(size))
    held_D, pairs_D = enumerate_pose(lengths, budget, size)
    np.testing.assert_allclose(found.probability_D, held_D, atol=1e-12)
    np.testing.assert_allclose(found.pairs_D, pairs_D, atol=1e-9)


def test_pose_of_the_authors_rule_for_cuts():
    """The first chunk ends in the first half; L_c = 2048 to L_t = 16384, and a small case by enumeration."""
    half = lambda n: np.arange(1, -(-n // 2) + 1)  # noqa: E731
    distances_D = np.array([1000, 1500, 2000, 8192, 16000, 16383])
    found = lib.pose([2048], 16384 - 2048, distances_D, [half(2048)])
    expected = [1.0, 0.58292, 0.17900, 0.142777, 0.026784, 1 / 14337]
    np.testing.assert_allclose(found.probability_D, expected, rtol=5e-5)
    small = lib.pose([7], 4, np.arange(12), [half(7)])
    held_D, pairs_D = enumerate_pose([7], 4, 12, half)
    np.testing.assert_allclose(small.probability_D, held_D, atol=1e-12)
    np.testing.assert_allclose(small.pairs_D, pairs_D, atol=1e-9)


def test_pose_of_any_cut_differs_from_the_authors_below_the_row_alone():
    found = lib.pose([2048], 16384 - 2048, np.array([1000, 1500, 8192, 16000, 16383, 16384]))
    np.testing.assert_allclose(found.probability_D, [1, 0.58315, 0.142777, 0.026784, 1 / 14337, 0], rtol=2e-5)
    whole = lib.pose([128], 1024 - 128, np.arange(1024))
    assert whole.pairs_D.sum() == pytest.approx(128 * 129 / 2), "skips move pairs and lose none"


def test_rows_of_many_documents_are_refused():
    with pytest.raises(ValueError, match="7 documents draw skips; allowed: up to 6"):
        lib.pose([2] * 7, 3, np.arange(3))


@pytest.mark.parametrize("lengths", [[40], [9, 30, 1]])
def test_drawn_rows_of_pose_have_its_probabilities(lengths):
    """Rows of a packer, within five standard deviations at each distance, both kinds of keys."""
    packer = packer_of(lengths, 1 + sum(lengths), 60, 2, positions="pose", mask="anchor", interleave=0, seed=5)
    assert packer.rows_per_epoch == 1
    distances_D, rows = np.arange(1 + sum(lengths) + 60), range(3000)
    found = lib.measure(packer, rows, distances_D)
    assert found.anchor.probability_D[0] == 1
    exact = lib.pose(lengths, 60, distances_D)
    assert_close(found.documents.probability_D, exact.probability_D, len(rows))
    np.testing.assert_allclose(found.documents.pairs_D[1:30], exact.pairs_D[1:30], rtol=0.1, atol=0.1)
    if len(lengths) == 1:
        anchor = lib.pose_anchor(40, 60, distances_D)
        assert anchor.probability_D.sum() == pytest.approx(41)
        assert_close(found.anchor.probability_D, anchor.probability_D, len(rows))


def assert_close(shares_D, expected_D, count):
    deviation_D = np.sqrt(expected_D * (1 - expected_D) / count)
    assert np.all(np.abs(shares_D - expected_D) <= 5 * deviation_D + 1e-9)


def test_there_must_be_rows():
    packer = packer_of([3], 4, 4, 2, positions="continue", mask="anchor", seed=0)
    with pytest.raises(ValueError, match="rows are empty"):
        lib.measure(packer, [], np.arange(3))


def test_a_packer_of_rows_without_documents_keys_counts_the_anchor():
    packer = RowPacker(
        store_of([3]),
        8,
        0,
        "anchor",
        "continue",
        boundary_targets=False,
        anchor_id=ANCHOR,
        pad_id=PAD,
        config=pose_config(),
    )
    row = packer.empty_row()
    documents_D, anchor_D = lib.count(row.segment_ids_T, row.positions_T, 1, np.arange(8))
    assert documents_D.sum() == 0 and anchor_D.tolist() == [1] + [0] * 7
