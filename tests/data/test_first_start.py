"""The first attempts at a preparation: what is wrong is said with what would be right, and the next start may do it."""

import re

import pytest

from anchorjax.data.store import preparing as preparing_lib
from anchorjax.errors import DataError
from tests.data import preparing
from tests.data.preparing import data_config


def test_a_start_that_has_finished_nothing_does_not_block_another(tmp_path):
    path = preparing.write_jsonl(tmp_path / "x.jsonl", [{"content": f"text {i}"} for i in range(50)])
    wrong = {"source": f"jsonl:{path}", "store": str(tmp_path / "store")}
    with pytest.raises(DataError, match=r"x.jsonl:1: text is missing or null \(data.text_key='text'"):
        preparing_lib.prepare(data_config(**wrong))
    assert (tmp_path / "store.part" / "request.json").exists()
    with pytest.raises(DataError, match=r"50 of 50 rows are bad, .* names nothing in the row, which has content"):
        preparing_lib.prepare(data_config(**wrong, bad_rows="skip"))
    preparing_lib.prepare(data_config(**wrong, text_key="content", held_out_share=0.2))
    assert not (tmp_path / "store.part").exists()


def few(tmp_path, count, **changes):
    path = preparing.write_jsonl(tmp_path / "few.jsonl", [{"text": f"text {i}"} for i in range(count)])
    return preparing_lib.prepare(data_config(source=f"jsonl:{path}", store=str(tmp_path / "store"), **changes))


def test_the_share_that_a_small_collection_needs_is_told_and_can_be_given_at_once(tmp_path):
    with pytest.raises(DataError, match=r"no document .* in the validation split, of 12 rows") as error:
        few(tmp_path, 12, held_out_share=0.001)
    share = re.search(
        r"held_out_share=0.001 held out none of 12 documents: data.held_out_share=([\d.]+) holds", str(error.value)
    )
    with pytest.raises(DataError, match="in the validation split"):
        few(tmp_path, 12, held_out_share=float(share[1]) - 0.002)
    indices = few(tmp_path, 12, held_out_share=float(share[1]))
    assert [indices[split].num_documents for split in ("train", "validation")] == [11, 1]


def test_a_collection_that_is_too_small_is_told_so(tmp_path):
    with pytest.raises(DataError, match=r"a store needs two different documents, .* and here there are 1"):
        few(tmp_path, 1, held_out_share=0.1)
    with pytest.raises(
        DataError, match=r"held_out_share=0.0 held out none of 2 documents.*(add documents|holds out at)"
    ):
        few(tmp_path, 2, held_out_share=0.0)
