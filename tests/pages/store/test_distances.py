"""Distances of the report: which choices are compared, and whether their numbers are those of rows."""

import dataclasses

import numpy as np
import pytest

from anchorjax import data
from anchorjax.data.rows import distances as counted
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.pages import page
from anchorjax.pages.store import distances as lib
from tests import tiny
from tests.pages.store.test_lengths import make_store

STORE = make_store([(length, 0) for length in (5, 60, 17, 3, 40, 22, 9, 31, 12, 50)])


def config_of(**changes):
    return tiny.config(**{f"data__{key}": value for key, value in ({"seq_len": 32} | changes).items()}).data


def compare(store=STORE, **changes):
    return lib.compare(store, ByteTokenizer(), config_of(**changes), 1)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["continue, anchor", "continue, full", "pose, anchor"]),
        ({"mask": "full"}, ["continue, full", "continue, anchor", "pose, full"]),
        ({"positions": "reset"}, ["reset, anchor", "continue, full", "continue, anchor", "pose, anchor"]),
        ({"positions": "pose", "max_position": 99}, ["pose, anchor", "continue, full", "continue, anchor"]),
        (
            {"interleave": 2},
            ["continue, anchor, interleave 2", "continue, full", "continue, anchor", "pose, anchor, interleave 2"],
        ),
    ],
)
def test_the_run_is_compared_with_plain_anchored_and_skipping_rows(changes, names):
    found = compare(**changes)
    assert [one.name for one in found.choices] == names
    most = changes.get("max_position", 8 * 32)
    assert {one.name: one.max_position for one in found.choices if "pose" in one.name} == {
        names[-1]: most
    } or most == 99
    assert found.listed == (8, 16, 31, most - 1)
    assert found.distances_D[found.places()].tolist() == list(found.listed)
    for one in found.choices:
        assert (one.found.anchor is None) == ("full" in one.name)
        assert (one.rows is None) == (one.name in ("continue, full", "continue, anchor", "reset, anchor"))


def test_a_store_of_conversations_is_compared_with_skipalign_too():
    trained = np.arange(STORE.num_tokens) % 7 > 3
    found = compare(dataclasses.replace(STORE, trained=trained))
    assert [one.name for one in found.choices][-1] == "skipalign, anchor"
    assert found.last(found.choices[-1].found.documents) > 31


def test_numbers_are_those_of_rows():
    """The exact ones over all rows of an epoch, the counted ones over rows that the same seed draws."""
    found = compare(packing="best_fit", positions="pose", max_position=64)
    own = data.row_packer(STORE, ByteTokenizer(), config_of(packing="best_fit", positions="pose", max_position=64), 1)
    rows = lib.draw_rows(max(lib.MOST_ROWS, own.rows_per_epoch), lib.MOST_ROWS, 1)
    expected = counted.measure(own, rows, found.distances_D)
    assert found.choices[0].rows == lib.MOST_ROWS
    np.testing.assert_array_equal(found.choices[0].found.documents.pairs_D, expected.documents.pairs_D)
    plain = data.row_packer(STORE, ByteTokenizer(), config_of(packing="best_fit"), 1)
    expected = counted.measure(plain, range(plain.rows_per_epoch), found.distances_D)
    np.testing.assert_allclose(found.choices[2].found.anchor.probability_D, expected.anchor.probability_D)
    np.testing.assert_allclose(found.choices[2].found.documents.pairs_D, expected.documents.pairs_D)


@pytest.mark.parametrize("seq_len", [2, 3, 64])
def test_the_section_has_both_figures_and_tables(seq_len):
    section = lib.section(compare(seq_len=seq_len), ", as training makes them")
    names = [block.name for block in section.blocks if isinstance(block, page.Figure)]
    assert names == ["distances", "distances_to_the_anchor"]
    probability, pairs = (block for block in section.blocks if isinstance(block, page.Table))
    assert probability.heads == pairs.heads
    assert [row[:2] for row in probability.rows] == [
        ("continue, anchor", "documents"),
        ("continue, full", "documents"),
        ("pose, anchor", "documents"),
        ("continue, anchor", "anchor"),
        ("pose, anchor", "anchor"),
    ]
    assert "pose, anchor ends at" in section.blocks[1].alt
