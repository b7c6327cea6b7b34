"""Who shares a row: each way of packing against its plain definition, and what all have in common."""

import collections
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.data.rows import row_plan
from anchorjax.data.rows.row_plan import Pieces, interleave, make_plan, report
from anchorjax.types import PACKINGS

documents = given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    capacity=st.integers(1, 20),
    seed=st.none() | st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 3),
)


def plan_of(packing, lengths, capacity, seed=None, epoch=0):
    return make_plan(packing, np.arange(len(lengths)), np.array(lengths), capacity, seed, epoch)


def drawn(plan):
    """Rows as text, a letter for each token of a document: aaab."""
    rows = [plan.row(index) for index in range(plan.num_rows)]
    return ["".join(chr(97 + d) * n for d, n in zip(row.document, row.length, strict=True)) for row in rows]


def test_the_drawing_in_the_module():
    lengths = [4, 7, 12, 5]
    packings = {packing: drawn(plan_of(packing, lengths, 9)) for packing in PACKINGS}
    assert packings == {
        "concat_split": ["aaaabbbbb", "bbccccccc", "cccccdddd", "d"],
        "first_fit": ["aaaaccc", "bbbbbbb", "ccccccccc", "ddddd"],
        "best_fit": ["aaaaddddd", "bbbbbbb", "ccccccccc", "ccc"],
    }
    for packing, rows in packings.items():
        assert f"    {packing:<15}{' '.join(f'{row:<9}' for row in rows).rstrip()}" in row_plan.__doc__


def plain_first_fit(lengths, capacity):
    rooms = []
    for length in lengths:
        index = next((i for i, room in enumerate(rooms) if room >= length), len(rooms))
        rooms += [capacity] if index == len(rooms) else []
        rooms[index] -= length
        yield index


def plain_best_fit_rooms(lengths, capacity):
    rooms = []
    for length in sorted(lengths, reverse=True):
        index = min((i for i, room in enumerate(rooms) if room >= length), key=lambda i: rooms[i], default=len(rooms))
        rooms += [capacity] if index == len(rooms) else []
        rooms[index] -= length
    return sorted(rooms)


bins_of = given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60), spare=st.integers(0, 30))


@settings(max_examples=200, deadline=None)
@bins_of
def test_first_fit_is_first_fit(lengths, spare):
    capacity = max(lengths) + spare
    bins = row_plan._first_fit(np.array(lengths), capacity)
    assert bins.tolist() == list(plain_first_fit(lengths, capacity))


@settings(max_examples=300, deadline=None)
@bins_of
def test_best_fit_is_best_fit_decreasing(lengths, spare):
    """Which of equal documents goes where is free; how full the bins are is not."""
    capacity = max(lengths) + spare
    load = np.bincount(row_plan._best_fit(np.array(lengths), capacity), weights=lengths)
    assert sorted((capacity - load).tolist()) == plain_best_fit_rooms(lengths, capacity)


@settings(max_examples=150, deadline=None)
@documents
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_plan_holds_every_token_once_and_cuts_only_what_it_must(packing, lengths, capacity, seed, epoch):
    plan = plan_of(packing, lengths, capacity, seed, epoch)
    rows = [plan.row(index) for index in range(plan.num_rows)]
    held = [(d, o + i) for row in rows for d, o, n in zip(*row, strict=True) for i in range(n)]
    assert sorted(held) == [(d, i) for d, length in enumerate(lengths) for i in range(length)]
    assert all(0 < row.length.sum() <= capacity for row in rows)
    assert all(np.all(np.diff(row.document) > 0) for row in rows), "in the order given, one piece each"
    pieces = collections.Counter(d for row in rows for d in row.document.tolist())
    if packing != "concat_split":
        assert all(pieces[d] == -(-length // capacity) for d, length in enumerate(lengths))
    whole = report(plan, capacity + 1, len(lengths))
    assert whole.rows == plan.num_rows and whole.kept == 1
    assert whole.fill == pytest.approx(sum(lengths) / (capacity * plan.num_rows))
    assert whole.cut == pytest.approx(sum(n > 1 for n in pieces.values()) / len(lengths))


def test_a_seed_orders_rows_and_none_keeps_the_documents_order():
    lengths = [3] * 40
    for packing in ("first_fit", "best_fit"):
        kept = [plan_of(packing, lengths, 6).row(r).document[0] for r in range(20)]
        assert kept == sorted(kept)
        orders = {(s, e): drawn(plan_of(packing, lengths, 6, s, e)) for s in (0, 1) for e in (0, 1)}
        assert len({tuple(rows) for rows in orders.values()}) == 4
        assert len({tuple(sorted(rows)) for rows in orders.values()}) == 1


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_report_reads_well(packing):
    text = str(report(plan_of(packing, [4, 7, 12, 5], 9), 10, num_documents=8))
    cut = "75.00%" if packing == "concat_split" else "25.00%"
    assert (
        text
        == f"an epoch has 4 rows, is filled to 77.78%, cuts {cut} of its documents and holds 50.0% of the documents"
    )


@pytest.mark.slow
@pytest.mark.parametrize("seq_len", [4096, 131072])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_million_documents_take_seconds(packing, seq_len):
    lengths = np.clip(np.exp(np.random.default_rng(0).normal(6.2, 1.2, 10**6)), 2, 10**6).astype(np.int64)
    started = time.process_time()
    plan = make_plan(packing, np.arange(10**6), lengths, seq_len - 1, seed=0, epoch=0)
    assert time.process_time() - started < 20
    assert report(plan, seq_len, 10**6).fill > 0.99


# Interleaving.


def pieces_of(*lengths, offsets=None):
    offsets = offsets or [0] * len(lengths)
    return Pieces(np.arange(len(lengths)), np.array(offsets), np.array(lengths))


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 15), min_size=1, max_size=8),
    offset=st.integers(0, 5),
    most=st.integers(2, 6),
    seed=st.integers(0, 2**63 - 1),
    row=st.integers(0, 10**9),
)
def test_interleaving_is_a_permutation_that_keeps_each_documents_order(lengths, offset, most, seed, row):
    whole = pieces_of(*lengths, offsets=[offset] * len(lengths))
    mixed = interleave(whole, most, seed, row)
    assert mixed.length.min() >= 1
    for document, length in enumerate(lengths):
        own = mixed.document == document
        assert 1 <= own.sum() <= most
        assert mixed.offset[own][0] == offset and mixed.length[own].sum() == length
        np.testing.assert_array_equal(mixed.offset[own][1:], (mixed.offset + mixed.length)[own][:-1])


def chi_square(counts, cells):
    expected = sum(counts.values()) / cells
    return sum((counts[cell] - expected) ** 2 for cell in counts) / expected + (cells - len(counts)) * expected


def test_every_merge_is_equally_likely():
    """Two documents in three pieces each have 6!/(3! 3!) = 20 orders; 43.8 is the 0.1% tail of 19 degrees."""
    counts = collections.Counter()
    for row in range(8000):
        mixed = interleave(pieces_of(10**6, 10**6), 3, seed=5, row=row)
        counts[tuple(mixed.document.tolist())] += 1
    assert set(counts) == {tuple(p) for p in itertools.permutations([0, 0, 0, 1, 1, 1])}
    assert chi_square(counts, 20) < 43.8


def test_every_cut_is_equally_likely():
    """One cut among the 9 places inside a document of 10 tokens; 26.1 is the 0.1% tail of 8 degrees."""
    counts = collections.Counter(int(interleave(pieces_of(10), 2, 6, row).length[0]) for row in range(4000))
    assert set(counts) == set(range(1, 10))
    assert chi_square(counts, 9) < 26.1


def test_rows_and_seeds_are_mixed_differently():
    orders = {
        tuple(interleave(pieces_of(50, 50, 50), 4, seed, row).document.tolist()) for seed in (0, 1) for row in (0, 1)
    }
    assert len(orders) == 4
