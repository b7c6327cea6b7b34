"""Numbers of documents and packings against brute force."""

import dataclasses
import statistics

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from anchorjax import data
from anchorjax.data.store.tokens import TokenStore
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.masks import allowed, anchors_of
from anchorjax.pages.store import drawing
from anchorjax.pages.store import lengths as lib
from anchorjax.types import MASKS, PACKINGS
from tests import tiny


def make_store(documents, names=("a", "b", "a", "")) -> TokenStore:
    """`documents` are (length, source) pairs. Two of the sources share a name, and one has none."""
    lengths, sources = np.array(documents).T
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = (np.arange(offsets[-1]) % 200).astype(np.uint16)
    return TokenStore(tokens, offsets, "", sources.astype(np.int16), names)


STORES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 3)), min_size=1, max_size=40).map(make_store)


@hypothesis.given(STORES)
@hypothesis.settings(deadline=None)
def test_counts_of_sources(store):
    found = lib.count_sources(store, only="nameless")
    assert [-one.tokens for one in found] == sorted(-one.tokens for one in found)
    assert {one.number for one in found} == set(store.sources.tolist())
    for one in found:
        own = [len(store.document(i)) for i in range(store.num_documents) if store.sources[i] == one.number]
        assert one.name == ("a", "b", "a", "nameless")[one.number]
        assert (one.documents, one.tokens, one.longest) == (len(own), sum(own), max(own))
        assert (one.median, one.mean) == (statistics.median(own), pytest.approx(statistics.mean(own)))


@hypothesis.given(STORES, st.integers(1, 5))
@hypothesis.settings(deadline=None)
def test_lengths_by_source_leave_none_out(store, most):
    counts = lib.count_sources(store, "x")
    found = lib.lengths_by_source(store, counts, most)
    assert len(found) == min(most, len(counts))
    assert sorted(np.concatenate([lengths for _, lengths in found])) == sorted(np.diff(store.offsets))
    for (name, lengths), one in zip(found, counts, strict=False):
        if "others" not in name:
            assert (name, lengths.sum(), len(lengths)) == (one.name, one.tokens, one.documents)


@hypothesis.given(STORES)
@hypothesis.settings(max_examples=25, deadline=None)
def test_packings_are_those_of_the_rows(store):
    config = tiny.config(data__seq_len=32).data
    tokenizer = ByteTokenizer()
    found = lib.pack(lib.without_text(store, 3), tokenizer, config, 3, [16, 32])
    assert [(one.seq_len, one.packing) for one in found] == [(T, packing) for T in (16, 32) for packing in PACKINGS]
    for one in found:
        changed = tiny.config(data__seq_len=one.seq_len, data__packing=one.packing).data
        packer = data.row_packer(store, tokenizer, changed, 3)
        rows = [packer.row(i) for i in range(packer.rows_per_epoch)]
        places = len(rows) * (one.seq_len - 1)
        documents = [len(set(row.segment_ids_T[1:].tolist()) - {-1}) for row in rows]
        assert one.report.rows == len(rows)
        assert one.report.fill == pytest.approx(store.num_tokens / places)
        # Who is cut has no trace in segment ids. Whole documents lie in one row: those in more than one are pieces.
        in_rows = np.bincount(packer.plan(0).pieces.document)
        assert one.report.cut == pytest.approx((in_rows > 1).sum() / store.num_documents)
        assert sum(documents) == in_rows.sum()
        spread = one.documents_low, one.documents_median, one.documents_high
        np.testing.assert_allclose(spread, np.percentile(documents, (10, 50, 90)))


@pytest.mark.parametrize("mask", MASKS)
@hypothesis.given(store=STORES)
@hypothesis.settings(max_examples=15, deadline=None)
def test_visible_contexts_are_those_of_the_dense_mask(mask, store):
    config = tiny.config(data__seq_len=32, data__mask=mask).data
    found = lib.pack(lib.without_text(store, 3), ByteTokenizer(), config, 3, [16, 32])
    assert [one.packing for one in found if one.targets_K is not None] == list(PACKINGS)
    series = {one.label: one for one in drawing.context_series(found)}
    index, last = np.arange(32), 0
    for one in found[len(PACKINGS) :]:
        packer = data.row_packer(store, ByteTokenizer(), dataclasses.replace(config, packing=one.packing), 3)
        keys = []
        for row in map(packer.row, range(packer.rows_per_epoch)):
            ids = row.segment_ids_T
            seen_TT = allowed(index[:, None], index, ids[:, None], ids, anchors_of(mask))
            keys += seen_TT.sum(1)[row.is_target_T].tolist()
        counted_K = [sum(2**k <= number < 2 ** (k + 1) for number in keys) for k in range(6)]
        assert one.targets_K.tolist() == counted_K
        drawn = series[one.packing]
        assert drawn.x == [2**k for k in range(len(drawn.x))]
        np.testing.assert_allclose(drawn.y, [100 * count / max(len(keys), 1) for count in counted_K[: len(drawn.x)]])
        last = max([last, *(k + 1 for k in range(6) if counted_K[k])])
    assert {len(one.x) for one in series.values()} == {last}, "empty buckets beyond the last one are left out"


def test_a_store_without_text_has_the_segments_of_the_real_one():
    store = make_store([(length, 0) for length in range(1, 60)])
    config = tiny.config(data__seq_len=64, data__interleave=3, data__packing="best_fit").data
    real, thin = (data.row_packer(s, ByteTokenizer(), config, 5) for s in (store, lib.without_text(store, 5)))
    assert real.rows_per_epoch == thin.rows_per_epoch
    for row in range(real.rows_per_epoch):
        np.testing.assert_array_equal(real.row(row).segment_ids_T, thin.row(row).segment_ids_T)


def test_documents_are_drawn_from_a_large_store():
    store = make_store([(i + 1, i % 2) for i in range(100)])
    thin = lib.without_text(store, 7, most=30)
    lengths = np.diff(thin.offsets)
    assert thin.num_documents == len(set(lengths.tolist())) == 30
    np.testing.assert_array_equal(thin.sources, (lengths - 1) % 2)
    assert thin.tokens.strides == (0,)  # no memory, however many
    again, other = (np.diff(lib.without_text(store, seed, most=30).offsets) for seed in (7, 8))
    np.testing.assert_array_equal(lengths, again)
    assert not np.array_equal(lengths, other)


@pytest.mark.parametrize(
    ("num_tokens", "chosen", "expected"),
    [
        (100, 64, [64]),
        (4095, 64, [64, 4096]),
        (4094, 64, [64]),
        (20_000, 8192, [4096, 8192, 16384]),
        (2**40, 5000, [4096, 5000, *(2**n for n in range(13, 21))]),
    ],
)
def test_row_lengths_are_those_that_the_store_fills(num_tokens, chosen, expected):
    assert lib.seq_lens(num_tokens, chosen) == expected
