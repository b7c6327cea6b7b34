"""Answers on disk: what is there is not asked again, and what is asked is asked as it would have been at once."""

import contextlib
import io
import json

import pytest

from anchorjax.errors import EvaluationError
from anchorjax.evaluation.answering import fill
from anchorjax.evaluation.results import Results


def batches_asked(results: Results, questions: str, rows: int = 2, most: int = 9) -> list[list[str]]:
    """What `fill` asks until it is killed, in the middle of its batch number `most`."""
    asked = []

    def find(some):
        asked.append(some)
        if len(asked) == most:
            raise KeyboardInterrupt
        return [{"text": text} for text in some]

    with contextlib.suppress(KeyboardInterrupt):
        fill(results, {text: text for text in questions}, find, lambda: rows, "questions")
    return asked


def test_batches_behind_a_kill_are_those_that_would_have_come(tmp_path):
    with Results(tmp_path, {}) as results:
        assert batches_asked(results, "abcde", most=2) == [["a", "b"], ["c", "d"]]
    with Results(tmp_path, {}) as results:
        assert list(results.answers) == ["a", "b"]
        assert batches_asked(results, "abcde") == [["c", "d"], ["e"]]
        assert batches_asked(results, "abcde") == []
        assert batches_asked(results, "fa") == [["f"]], "what is there is not asked in any company"
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()[1:]]
    assert [line["key"] for line in lines] == [*"abcdef"]


def test_a_batch_is_one_write(tmp_path):
    """In front of the first byte of the next one a reader finds it whole."""
    with Results(tmp_path, {}) as results:
        results._file = writes = io.BytesIO()
        seen = []
        writes.write = lambda content: seen.append(content) or len(content)
        results.add_all({"a": {"text": "x"}, "b": {"text": "y"}})
    assert [json.loads(line)["key"] for line in seen[0].splitlines()] == ["a", "b"] and len(seen) == 1


def test_only_answers_hold_a_directory(tmp_path):
    """A model that could not be loaded leaves a request and no answer."""
    for request in ({"model": "half"}, {"model": "whole"}):
        with Results(tmp_path, request) as results:
            assert not results.answers
    with Results(tmp_path, {"model": "whole"}) as results:
        results.add("a", text="x")
    with pytest.raises(EvaluationError, match=r"answers to another request \(model: 'whole' -> 'half'\)"):
        Results(tmp_path, {"model": "half"})
