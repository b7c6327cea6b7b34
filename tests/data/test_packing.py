import collections
import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.data.rows.packing import PackedRows, RowPacker
from anchorjax.data.rows.row import stack
from anchorjax.data.store.tokens import TokenStore
from anchorjax.masks import anchors_of
from anchorjax.types import MASKS

ANCHOR, PAD = 1_000_000, 1_000_001


GOLDEN_ORDERS = [[4, 1, 6, 3, 2, 7, 5, 0], [3, 1, 6, 2, 5, 4, 0, 7]]


def store_of(lengths):
    """A store whose token t is simply t, so that every token tells where it came from."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenStore(np.arange(offsets[-1], dtype=np.int32), offsets, fingerprint="test")


def packer_of(lengths, seq_len, **changes):
    options = {"seed": None, "mask": "anchor", "positions": "continue", "boundary_targets": False}
    return RowPacker(store_of(lengths), seq_len, anchor_id=ANCHOR, pad_id=PAD, **(options | changes))


def rows_equal(left, right):
    fields = [field.name for field in dataclasses.fields(left)]
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in fields)


lengths_and_seq_len = given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    seq_len=st.integers(2, 20),
    seed=st.none() | st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 3),
)


# The oracle: documents (a, b, c), (d, e), here 0 1 2 and 3 4, in rows of 6 and of 8.


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("positions", ["continue", "reset"])
@pytest.mark.parametrize("pads", [0, 2])
def test_oracle_row(mask, positions, pads):
    row = packer_of([3, 2], 6 + pads, mask=mask, positions=positions).row(0)
    assert row.tokens_T.tolist() == [ANCHOR, 0, 1, 2, 3, 4] + [PAD] * pads
    assert row.targets_T.tolist() == [0, 1, 2, PAD, 4, PAD] + [PAD] * pads
    assert row.is_target_T.tolist() == [1, 1, 1, 0, 1, 0] + [0] * pads
    expected_positions = {"continue": [0, 1, 2, 3, 4, 5], "reset": [0, 0, 1, 2, 0, 1]}[positions]
    assert row.positions_T.tolist() == expected_positions + [6, 7][:pads]
    expected_segments = [0] * 6 if mask == "full" else [0, 1, 1, 1, 2, 2]
    assert row.segment_ids_T.tolist() == expected_segments + [-1] * pads
    assert row.index_T.tolist() == list(range(6 + pads))
    bools = [name for name, array in vars(row).items() if array.dtype == np.bool_]
    assert bools == ["is_target_T"] and all(x.dtype == np.int32 for name, x in vars(row).items() if name not in bools)


@pytest.mark.parametrize(("mask", "pairs"), [("anchor", 15), ("intra_doc", 10), ("full", 21)])
def test_oracle_visible_pairs(mask, pairs):
    """The segment ids and `num_anchors` mean what attention will make of them."""
    ids = packer_of([3, 2], 6, mask=mask).row(0).segment_ids_T
    index = np.arange(6)
    same_or_anchor = (ids[:, None] == ids[None, :]) | (index[None, :] < anchors_of(mask))
    assert (same_or_anchor & (index[None, :] <= index[:, None])).sum() == pairs


def test_oracle_boundary_targets():
    row = packer_of([3, 2], 8, boundary_targets=True).row(0)
    assert row.targets_T.tolist() == [0, 1, 2, 3, 4, PAD, PAD, PAD]
    assert row.is_target_T.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


def test_a_cut_document_goes_on_under_the_next_anchor():
    first, second = (packer_of([5, 2], 5, positions="reset").row(i) for i in range(2))
    assert first.tokens_T.tolist() == [ANCHOR, 0, 1, 2, 3]
    assert first.targets_T.tolist() == [0, 1, 2, 3, 4], "the last target is the first token of the next row"
    assert first.is_target_T.tolist() == [1, 1, 1, 1, 1]
    assert second.tokens_T.tolist() == [ANCHOR, 4, 5, 6, PAD]
    assert second.targets_T.tolist() == [PAD, PAD, 6, PAD, PAD], "token 4 was a target in the first row"
    assert second.is_target_T.tolist() == [0, 0, 1, 0, 0]
    assert second.segment_ids_T.tolist() == [0, 1, 2, 2, -1]
    assert second.positions_T.tolist() == [0, 0, 0, 1, 4]


def test_boundary_targets_stay_inside_the_row():
    first, second = (packer_of([4, 3], 5, boundary_targets=True).row(i) for i in range(2))
    assert first.is_target_T.tolist() == [1, 1, 1, 1, 0]
    assert second.targets_T.tolist() == [4, 5, 6, PAD, PAD]


@settings(max_examples=150, deadline=None)
@lengths_and_seq_len
def test_an_epoch_conserves_tokens_and_targets(lengths, seq_len, seed, epoch):
    packer = packer_of(lengths, seq_len, seed=seed)
    tokens, targets = collections.Counter(), collections.Counter()
    for index in range(epoch * packer.rows_per_epoch, (epoch + 1) * packer.rows_per_epoch):
        row = packer.row(index)
        assert row.tokens_T[0] == ANCHOR and row.segment_ids_T[0] == 0
        assert row.tokens_T.shape == (seq_len,)
        tokens.update(row.tokens_T[1:][row.segment_ids_T[1:] >= 0].tolist())
        targets.update(row.targets_T[row.is_target_T > 0].tolist())
        # A token's target is what follows it in the store; a pad id stands where there is none.
        inner = np.flatnonzero(row.is_target_T[1:] > 0) + 1
        assert np.array_equal(row.targets_T[inner], row.tokens_T[inner] + 1)
        assert np.all(row.targets_T[row.is_target_T == 0] == PAD)
        assert np.all((row.tokens_T == PAD) == (row.segment_ids_T == -1))
    everything = set(range(sum(lengths)))
    first_tokens = set(packer.store.offsets[:-1].tolist())
    assert tokens == collections.Counter(everything)
    assert {token: targets[token] for token in everything - first_tokens} == dict.fromkeys(everything - first_tokens, 1)
    assert max(targets.values(), default=1) == 1


@settings(max_examples=100, deadline=None)
@lengths_and_seq_len
def test_segments_and_positions_follow_the_documents(lengths, seq_len, seed, epoch):
    packer = packer_of(lengths, seq_len, seed=seed, positions="reset")
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for index in range(epoch * packer.rows_per_epoch, (epoch + 1) * packer.rows_per_epoch):
        row = packer.row(index)
        real = row.segment_ids_T[1:] >= 0
        documents = document_of[row.tokens_T[1:][real]]
        pieces = [list(group) for group in _runs(documents)]
        assert row.segment_ids_T[1:][real].tolist() == [i + 1 for i, p in enumerate(pieces) for _ in p]
        assert row.positions_T[1:][real].tolist() == [i for p in pieces for i in range(len(p))]


def _runs(values):
    start = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[start]:
            yield values[start:end]
            start = end


def _document_order(packer, epoch):
    rows = [packer.row(epoch * packer.rows_per_epoch + i) for i in range(packer.rows_per_epoch)]
    stream = np.concatenate([row.tokens_T[1:] for row in rows])
    starts = packer.store.offsets[:-1]
    return [int(np.searchsorted(starts, token)) for token in stream if token in starts]


def test_epochs_and_seeds_order_the_documents_differently():
    orders = [_document_order(packer_of([2] * 20, 7, seed=seed), e) for seed in (0, 1) for e in (0, 1, 2)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6


def test_no_seed_keeps_the_order_in_every_epoch():
    packer = packer_of([2] * 20, 7, seed=None)
    assert _document_order(packer, 0) == _document_order(packer, 3) == list(range(20))


def test_the_order_never_changes():
    """Golden. If this fails, a resumed run would see other data than before: keep the order, or say so."""
    orders = [_document_order(packer_of([2] * 8, 5, seed=7), epoch) for epoch in (0, 1)]
    assert orders == GOLDEN_ORDERS


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_a_row_does_not_depend_on_the_rows_read_before(indices):
    shared = packer_of([3, 1, 7, 2], 5, seed=3)
    for index in indices:
        assert rows_equal(shared.row(index), packer_of([3, 1, 7, 2], 5, seed=3).row(index))


def test_a_packer_survives_pickling():
    packer = packer_of([3, 1, 7, 2], 5, seed=3)
    packer.row(0)
    assert rows_equal(pickle.loads(pickle.dumps(packer)).row(11), packer.row(11))


def test_documents_in_small_types_are_widened():
    store = TokenStore(np.array([5, 6], np.uint16), np.array([0, 2]), "test")
    row = RowPacker(store, 4, None, "anchor", "continue", False, anchor_id=70_000, pad_id=70_001).row(0)
    assert row.tokens_T.tolist() == [70_000, 5, 6, 70_001]
    assert row.targets_T.tolist() == [5, 6, 70_001, 70_001]


def test_an_empty_row_is_an_anchor_and_pads_of_no_weight():
    row = packer_of([3, 2], 4).empty_row()
    assert row.tokens_T.tolist() == [ANCHOR, PAD, PAD, PAD]
    assert row.segment_ids_T.tolist() == [0, -1, -1, -1]
    assert row.is_target_T.tolist() == [0, 0, 0, 0]
    assert row.positions_T.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("rows", [None, [0, 1], [1, 3]])
def test_a_process_reads_its_rows_of_each_batch(rows):
    packer = packer_of([3, 1, 7, 2], 5, seed=3)
    packed = PackedRows(packer, 4, rows)
    expected = [packer.row(step * 4 + row) for step in range(3) for row in (rows or range(4))]
    found = [packed[index] for index in range(len(expected))]
    assert np.array_equal(stack(found).tokens_BT, stack(expected).tokens_BT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": "causal"}, "'causal'; allowed: anchor, intra_doc, full"),
        ({"positions": "random"}, "'random'; allowed: continue, reset"),
        ({"seed": -1}, "seed is -1"),
        ({"seq_len": 1}, "seq_len is 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        packer_of([3], **({"seq_len": 4} | changes))


@pytest.mark.parametrize(("batch", "rows"), [(0, None), (4, [4]), (4, [-1]), (4, [])])
def test_impossible_rows_are_refused(batch, rows):
    with pytest.raises(ValueError, match=r"batch_size is|rows are"):
        PackedRows(packer_of([3], 4), batch, rows)


def test_a_negative_row_is_refused():
    with pytest.raises(IndexError):
        packer_of([3], 4).row(-1)
