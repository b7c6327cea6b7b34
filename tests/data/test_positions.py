"""Position transforms: the contract of all of them, and PoSE's oracles (arXiv 2309.10400)."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax import data, types
from anchorjax.data.rows import positions as positions_lib
from anchorjax.data.rows.packing import RowPacker
from anchorjax.data.rows.positions import POSITIONS, RowPieces, RowSpec
from anchorjax.data.rows.positions.skipping.pose import positions as pose
from anchorjax.errors import ConfigError
from tests import tiny
from tests.data.test_loader import STORE, TOKENIZER, assert_equal, config_of, train
from tests.data.test_packing import ANCHOR, PAD, store_of
from tests.training.making import make_steps

layouts = given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    seq_len=st.integers(2, 24),
    more=st.integers(0, 40),
    chunks=st.integers(2, 5),
    packing=st.sampled_from(types.PACKINGS),
    interleave=st.sampled_from([0, 2, 3]),
    mask=st.sampled_from(types.MASKS),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2),
)


def pose_config(chunks=2):
    return config_of(positions="pose", max_position=100, pose_chunks=chunks)


def packer_of(lengths, seq_len, more, chunks, **options):
    fixed = {"boundary_targets": False, "anchor_id": ANCHOR, "pad_id": PAD, "config": pose_config(chunks)}
    return RowPacker(store_of(lengths), seq_len, max_position=seq_len + more, **fixed, **options)


def rows_of(packer, epoch):
    return [packer.row(epoch * packer.rows_per_epoch + i) for i in range(packer.rows_per_epoch)]


def tokens_of_documents(row, lengths):
    """Indices of each document's tokens in the row, told by the tokens alone."""
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    text = np.flatnonzero(row.tokens_T < ANCHOR)
    own = document_of[row.tokens_T[text]]
    return [text[own == document] for document in np.unique(own)]


def test_the_names_of_the_configuration_are_those_of_the_functions():
    assert tuple(POSITIONS) == types.POSITIONS and set(types.SKIPPING) <= set(POSITIONS)


def test_a_transform_gets_the_section_with_its_own_keys(monkeypatch):
    """A new key needs no field of the packer and of the contract."""
    given, config = [], pose_config(chunks=5)

    def positions(pieces, spec, rng):
        given.append(spec)
        return np.arange(spec.seq_len, dtype=np.int32)

    monkeypatch.setitem(POSITIONS, "pose", positions)
    data.row_packer(STORE, TOKENIZER, config, seed=0).row(0)
    assert given == [RowSpec(config.seq_len, config.max_position, config)]


@pytest.mark.parametrize("name", POSITIONS)
@settings(max_examples=80, deadline=None)
@layouts
def test_contract(name, lengths, seq_len, more, chunks, epoch, **options):
    """Every transform: int32 in range, the anchor at 0, rising in each document, pure, and nothing else changes."""
    more = more if name in types.SKIPPING else 0
    make = lambda positions: packer_of(lengths, seq_len, more, chunks, positions=positions, **options)  # noqa: E731
    packer, plain = make(name), make("continue")
    for index, row in enumerate(rows_of(packer, epoch), start=epoch * packer.rows_per_epoch):
        assert row.positions_T.dtype == np.int32 and row.positions_T.shape == (seq_len,)
        assert row.positions_T[0] == 0
        assert row.positions_T.min() >= 0 and row.positions_T.max() < seq_len + more
        for own in tokens_of_documents(row, lengths):
            assert np.all(np.diff(row.positions_T[own]) > 0)
        np.testing.assert_array_equal(make(name).row(index).positions_T, row.positions_T)
        other = plain.row(index)
        for field in dataclasses.fields(row):
            if field.name != "positions_T":
                np.testing.assert_array_equal(getattr(row, field.name), getattr(other, field.name))


@settings(max_examples=150, deadline=None)
@layouts
def test_pose_skips_at_chunks_inside_documents_and_nowhere_else(lengths, seq_len, more, chunks, epoch, **options):
    packer = packer_of(lengths, seq_len, more, chunks, positions="pose", **options)
    for row in rows_of(packer, epoch):
        steps = np.diff(row.positions_T)
        assert np.all(steps >= 1), "rising along the row, from document to document and into the padding"
        jumps = set((np.flatnonzero(steps > 1) + 1).tolist())
        for own in tokens_of_documents(row, lengths):
            here = jumps & set(own[1:].tolist())
            assert len(here) <= chunks - 1
            jumps -= here
        assert not jumps, "neither a document's first token nor padding begins a chunk"
        if not more:
            assert row.positions_T.tolist() == list(range(seq_len))


class Scripted:
    """Raw draws that are given: of the order of documents, of cuts, of skips."""

    def __init__(self, *draws):
        self._draws = [np.array(values, np.uint64) for values in draws]

    def random_raw(self, size):
        draws = self._draws.pop(0)
        assert len(draws) == size
        return draws


def pieces_of(lengths):
    lengths = np.array(lengths)
    start = 1 + np.cumsum(lengths) - lengths
    return RowPieces(np.arange(len(lengths)), start, np.zeros_like(lengths), lengths)


def test_oracle_of_one_document():
    """L_c = 8, L_t = 20, a first chunk of 3 and u_1 = 9; the anchor comes on top and shifts all by one."""
    spec, one = RowSpec(1 + 8, 1 + 20, pose_config()), pieces_of([8])
    at = pose(one, spec, Scripted([5], [2], [9])).tolist()
    assert at[0] == 0 and [p - 1 for p in at[1:]] == [0, 1, 2, 12, 13, 14, 15, 16]
    assert pose(one, spec, Scripted([5], [2], [13])).tolist() == list(range(9)), "13 modulo 13 is no skip"
    assert pose(one, spec, Scripted([5], [2], [12])).max() == 20, "a document alone may use the whole budget"


def test_documents_share_the_budget_in_the_order_drawn():
    """(a b c) and (d e) in 8 tokens for 20 positions, as in the docstring of positions/; and the other way round."""
    spec, two = RowSpec(8, 20, pose_config()), pieces_of([3, 2])
    assert pose(two, spec, Scripted([1, 2], [1, 0], [6, 3])).tolist() == [0, 1, 2, 9, 10, 14, 15, 16]
    # The second document draws first, 12 of 12; nothing is left for the first.
    assert pose(two, spec, Scripted([2, 1], [0, 1], [12, 3])).tolist() == [0, 1, 2, 3, 4, 17, 18, 19]


def test_chunks_of_an_interleaved_document_are_cut_in_its_own_tokens():
    """a | d | b c | e: the cut before b lies between two pieces, and the skip there moves all that follows."""
    pieces = RowPieces(np.array([0, 1, 0, 1]), np.array([1, 2, 3, 5]), np.array([0, 0, 1, 1]), np.array([1, 1, 2, 1]))
    spec = RowSpec(8, 20, pose_config())
    assert pose(pieces, spec, Scripted([1, 2], [0, 0], [4, 2])).tolist() == [0, 1, 2, 7, 8, 11, 12, 13]


def test_every_cut_and_every_skip_is_equally_likely():
    """Three tokens and a budget of three: 2 cuts x 4 skips, each within four standard deviations of 1/8."""
    spec, count = RowSpec(4, 7, pose_config()), 8000
    found = collections.Counter(
        tuple(pose(pieces_of([3]), spec, np.random.Philox(key=[1, i])).tolist()) for i in range(count)
    )
    cut_1 = {(0, 1, 2 + u, 3 + u): 1 for u in range(1, 4)}
    cut_2 = {(0, 1, 2, 3 + u): 1 for u in range(1, 4)}
    expected = {**cut_1, **cut_2, (0, 1, 2, 3): 2}
    assert set(found) == set(expected)
    for row, ways in expected.items():
        share = ways / 8
        assert abs(found[row] / count - share) < 4 * np.sqrt(share * (1 - share) / count)


def test_probability_that_a_distance_occurs():
    """L_c = 2048 to L_t = 16384, over all cuts and skips. Beyond L_c it is that of the authors' rule for cuts."""
    context, budget = 2048, 16384 - 2048
    longest_K = np.maximum(np.arange(1, context), context - np.arange(1, context)) - 1  # distance within a chunk

    def probability(distance):
        across = np.count_nonzero(np.abs(distance - np.arange(budget + 1) - context / 2) < context / 2) / (budget + 1)
        within = np.mean(longest_K >= distance)
        return within + (1 - within) * across

    for distance, expected in ((8192, 0.142777), (16000, 0.026784), (16383, 6.975e-5)):
        assert probability(distance) == pytest.approx(expected, rel=1e-4)
    assert probability(1000) == 1.0
    assert probability(1500) == pytest.approx(0.58315, abs=1e-5)  # first chunk in the first half: 0.58292
    spec, lone = RowSpec(1 + context, 1 + 16384, pose_config()), pieces_of([context])
    seen = []
    for i in range(3000):
        at = pose(lone, spec, np.random.Philox(key=[2, i]))
        seen.append(np.isin(at + 1500, at).any())
    assert abs(np.mean(seen) - probability(1500)) < 4 * np.sqrt(0.25 / 3000)


def test_documents_of_a_packed_row_draw_alike():
    """Three documents, a budget of 1000: the first to draw gets a half on average, then a quarter, then an eighth."""
    spec, count = RowSpec(31, 1031, pose_config()), 4000
    rows = [pose(pieces_of([10, 10, 10]), spec, np.random.Philox(key=[3, i])) for i in range(count)]
    spans_D = np.array([[at[10] - at[1], at[20] - at[11], at[30] - at[21]] for at in rows]) - 9
    np.testing.assert_allclose(spans_D.mean(0), 1000 * (1 / 2 + 1 / 4 + 1 / 8) / 3, rtol=0.06)
    assert np.all(spans_D.max(0) > 990), "any of them may take nearly all"
    assert np.all(spans_D.sum(1) <= 1000)


def test_training_draws_anew_in_every_epoch_and_held_out_rows_do_not_skip():
    options = {"positions": "pose", "max_position": 128}
    packer = data.row_packer(STORE, TOKENIZER, config_of(**options), seed=3)
    assert packer.row(0).positions_T.max() < 128
    again = [packer.row(i).positions_T.tolist() for i in range(40)]
    assert len({tuple(at) for at in again}) == 40
    (batch,) = train(1, **options)
    assert 16 <= batch.positions_BT.max() < 128
    skipping, plain = config_of(**options), config_of()
    assert_equal(*(list(data.eval_rows(STORE, TOKENIZER, config, max_rows=0)) for config in (skipping, plain)))


@pytest.mark.parametrize(("shift", "at"), [(16, 16), (-1, -1)])
def test_a_position_outside_is_an_error_on_the_host(monkeypatch, shift, at):
    """RoPE's tables would clamp it, and the run would train on wrong phases without a sign."""
    bad = lambda pieces, spec, rng: np.arange(16, dtype=np.int32) + shift  # noqa: E731
    monkeypatch.setitem(positions_lib.POSITIONS, "continue", bad)
    packer = data.row_packer(STORE, TOKENIZER, config_of(), seed=3)
    with pytest.raises(ValueError, match=rf"row 5: data.positions=continue puts token 0 at position {at}; .* 0 to 15"):
        packer.row(5)


def test_skips_need_a_seed():
    with pytest.raises(ValueError, match="need a seed"):
        packer_of([3], 4, 4, 2, positions="pose", mask="anchor", seed=None)
    with pytest.raises(ValueError, match=r"max_position is 3; allowed: 0, or seq_len=4"):
        packer_of([3], 4, -1, 2, positions="continue", mask="anchor", seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "pose"}, "with data.positions=pose and data.seq_len=64 it must be more than data.seq_len"),
        ({"positions": "pose", "max_position": 64}, "it must be more than data.seq_len"),
        ({"max_position": 65}, "with data.positions=continue and data.seq_len=64 it must be 0"),
        ({"max_position": 63, "positions": "reset"}, "it must be 0"),
    ],
)
def test_lengths_that_do_not_fit_the_positions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tiny.config(**{f"data__{key}": value for key, value in changes.items()})
    assert caught.value.key == "data.max_position"


def test_the_model_is_made_for_all_positions():
    config = tiny.config(data__positions="pose", data__max_position=512)
    assert config.max_position == 512 and make_steps(config).spec.max_position == 512
    assert tiny.config().max_position == 64


def test_held_out_rows_continue_whatever_the_keys_of_the_transform_say():
    """`continue` uses none of them, and a configuration refuses a value that nothing uses."""
    batch = next(data.eval_rows(STORE, TOKENIZER, pose_config(chunks=5), 4))
    assert batch.positions_BT.max() == batch.positions_BT.shape[1] - 1
