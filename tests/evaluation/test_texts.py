"""Texts to score: from where they are read, and which are chosen."""

import json

import pytest

from anchorjax.data import sources
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.errors import EvaluationError, UsageError
from anchorjax.evaluation import texts
from anchorjax.evaluation.texts import Documents

BYTES = tokenizer_lib.load("bytes")
TEXTS = [letter * size for letter, size in zip("abcdefgh", (3, 50, 9, 40, 50, 5, 60, 41), strict=True)]


@pytest.mark.parametrize("name", ["{}/a.jsonl", "{}", "{}/*.jsonl", "jsonl:{}/a.jsonl"])
def test_files_are_read_by_their_names(tmp_path, name):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": {"en": text}}) + "\n" for text in TEXTS))
    assert texts.read(name.format(tmp_path), "body.en") == TEXTS


def test_a_folder_of_texts_is_a_document_each(tmp_path):
    for text in TEXTS:
        (tmp_path / f"{text[0]}.txt").write_text(text)
    assert texts.read(str(tmp_path)) == TEXTS


def test_a_file_of_no_known_kind_needs_one(tmp_path):
    (tmp_path / "book").write_text("It was.")
    with pytest.raises(UsageError, match="is of no known kind; write KIND:PATH, with KIND one of array_record, jsonl"):
        texts.read(str(tmp_path / "book"))
    assert texts.read(f"text_folder:{tmp_path / 'book'}") == ["It was."]


def test_what_ships_is_what_no_run_was_trained_on(data_dir):
    held_out = sources.load("public_domain", "validation", data_dir)
    assert texts.read(texts.SHIPPED) == [held_out[i]["text"] for i in range(len(held_out))]


def choose(*arguments, seed: int = 0, order=TEXTS):
    found, too_short = Documents("it", order, BYTES, seed).choose(*arguments)
    return [(one.text, len(one.ids_T)) for one in found], too_short


def test_long_documents_are_chosen_and_cut():
    """With BOS a document of 40 bytes has 41 tokens."""
    chosen, too_short = choose(41, 100)
    assert sorted(chosen) == [(text, 40) for text in TEXTS if len(text) >= 40]
    assert too_short == 3
    assert sorted(choose(51, 100, 41)[0]) == [(text, min(50, len(text))) for text in TEXTS if len(text) >= 40]


def test_the_choice_is_drawn_from_the_seed_and_the_texts():
    first, _ = choose(41, 2)
    assert len(first) == 2
    assert choose(41, 2, order=TEXTS[::-1])[0] == first, "the order of the files does not matter"
    assert choose(41, 3)[0][:2] == first
    assert len({str(choose(41, 2, seed=seed)) for seed in range(8)}) > 3


def test_without_a_long_document_the_longest_is_named():
    with pytest.raises(EvaluationError, match=r"none of the 8 documents of it has 62 tokens; the longest has 61"):
        choose(62, 1)
