"""Position transforms: the contract of all of them. Those of a training method have tests of their own in methods/."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax import data, types
from anchorjax.data.rows import positions as positions_lib
from anchorjax.data.rows.packing import RowPacker
from anchorjax.data.rows.positions import POSITIONS, RowSpec
from anchorjax.errors import ConfigError
from tests import tiny
from tests.data.test_loader import STORE, TOKENIZER, assert_equal, config_of, train
from tests.data.test_packing import ANCHOR, PAD, store_of
from tests.training.making import make_steps

LAYOUTS = {
    "lengths": st.lists(st.integers(1, 12), min_size=1, max_size=12),
    "seq_len": st.integers(2, 24),
    "more": st.integers(0, 40),
    "chunks": st.integers(2, 5),
    "packing": st.sampled_from(types.PACKINGS),
    "interleave": st.sampled_from([0, 2, 3]),
    "mask": st.sampled_from(types.MASKS),
    "seed": st.integers(0, 2**63 - 1),
    "epoch": st.integers(0, 2),
}
layouts = given(**LAYOUTS)


def pose_config(chunks=2):
    return config_of(positions="pose", max_position=100, pose_chunks=chunks)


def packer_of(lengths, seq_len, more, chunks, **options):
    """Conversations, of which every second token or so is trained on: texts to all transforms but skipalign."""
    fixed = {"boundary_targets": False, "anchor_id": ANCHOR, "pad_id": PAD, "config": pose_config(chunks)}
    store = dataclasses.replace(store_of(lengths), trained=np.random.default_rng(0).random(sum(lengths)) < 0.5)
    return RowPacker(store, seq_len, max_position=seq_len + more, **fixed, **options)


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
