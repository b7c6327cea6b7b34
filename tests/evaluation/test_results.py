"""Answers on disk: what is there is not asked again, and what is asked is asked as it would have been at once."""

import contextlib
import json

import pytest

from anchorjax.errors import EvaluationError
from anchorjax.evaluation.answering import fill
from anchorjax.evaluation.results import Results


def batches_asked(results: Results, questions: str, rows: int = 2, most: int = 99) -> list[list[str]]:
    """What `fill` asks, until `most` answers have come."""
    asked = []

    def find(some):
        asked.append(some)
        return [{"text": text} for text in some]

    keep, count = results.add, len(results.answers)

    def add(key, **found):
        if len(results.answers) == count + most:
            raise KeyboardInterrupt
        keep(key, **found)

    results.add = add
    with contextlib.suppress(KeyboardInterrupt):
        fill(results, {text: text for text in questions}, find, lambda: rows, "questions")
    results.add = keep
    return asked


def test_a_batch_that_was_cut_short_is_asked_whole(tmp_path):
    with Results(tmp_path, {}) as results:
        assert batches_asked(results, "abcde", most=3) == [["a", "b"], ["c", "d"]]
    with Results(tmp_path, {}) as results:
        assert list(results.answers) == ["a", "b", "c"]
        assert batches_asked(results, "abcde") == [["c", "d"], ["e"]]
        assert batches_asked(results, "abcde") == []
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()[1:]]
    assert [line["key"] for line in lines] == ["a", "b", "c", "d", "e"], "what was there is written once"


def test_only_answers_hold_a_directory(tmp_path):
    """A model that could not be loaded leaves a request and no answer."""
    for request in ({"model": "half"}, {"model": "whole"}):
        with Results(tmp_path, request) as results:
            assert not results.answers
    with Results(tmp_path, {"model": "whole"}) as results:
        results.add("a", text="x")
    with pytest.raises(EvaluationError, match=r"answers to another request \(model: 'whole' -> 'half'\)"):
        Results(tmp_path, {"model": "half"})
