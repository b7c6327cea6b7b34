"""One line an answer: what is there is not asked again, and every summary is a function of the lines."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.errors import EvaluationError
from anchorjax.evaluation.record import Record
from anchorjax.evaluation.runner import Way, fill
from anchorjax.evaluation.task import Example


class Weights:
    weights_id, step = "w", None


def ask_all(record: Record, texts: list[str], rows: int = 2, most: int = 99) -> list[list[str]]:
    """The batches that are asked until a kill in the middle of batch number `most`; a text's score is its length."""
    asked = []

    def ask(_, some):
        asked.append(list(some))
        if len(asked) == most:
            raise KeyboardInterrupt
        return [{"text": text} for text in some]

    numbers: dict[int, int] = {}
    examples = []
    for text in texts:
        index = numbers[len(text)] = numbers.get(len(text), -1) + 1
        examples.append(Example("t", len(text), index, lambda text=text: text, None, len(text), text))
    cells = [{"task": "t", "length": length, "examples": last + 1} for length, last in numbers.items()]
    record.begin("typed", {"n": 1}, cells)
    way = Way(ask, lambda: rows, len, lambda _: None)
    with contextlib.suppress(KeyboardInterrupt):
        fill(record, Weights, examples, way, lambda one, made, output: {"score": float(len(made))} | output, "texts")
    return asked


def summary(record: Record) -> dict:
    cells = record.cells({"n": 1}, ["w"])
    return {(cell.task, cell.length): (cell.mean(), [line["text"] for line in cell.lines[0]]) for cell in cells}


TEXTS = st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.integers(1, 12), st.integers(1, 3))
def test_a_kill_after_any_batch_changes_no_batch_and_no_summary(tmp_path_factory, texts, kill, rows):
    whole, killed = (tmp_path_factory.mktemp("record") for _ in range(2))
    with Record(whole, {}) as record:
        batches = ask_all(record, texts, rows)
        expected = summary(record)
    with Record(killed, {}) as record:
        ask_all(record, texts, rows, most=kill)
    with open(killed / "answers.jsonl", "ab") as file:
        file.write(b'{"task": "t", "le')  # a kill leaves half of a line
    with Record(killed, {}) as record:
        assert ask_all(record, texts, rows) == batches[kill - 1 :]
        assert summary(record) == expected
        assert ask_all(record, texts, rows) == []


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.randoms())
def test_the_order_of_lines_does_not_matter(tmp_path_factory, texts, rng):
    first, second = (tmp_path_factory.mktemp("record") for _ in range(2))
    with Record(first, {}) as record:
        ask_all(record, texts)
        expected = summary(record)
    request, *lines = (first / "answers.jsonl").read_text().splitlines(keepends=True)
    rng.shuffle(lines)
    (second / "answers.jsonl").write_text("".join([request, *lines]))
    with Record(second, {}) as record:
        assert summary(record) == expected


def test_batches_are_of_all_samples_by_length(tmp_path):
    """With rows of one length in most batches, there is padding in one batch of the five, where the lengths change."""
    texts = ["a" * (1 + 2 * (number % 2)) for number in range(10)]
    with Record(tmp_path, {}) as record:
        batches = ask_all(record, texts)
    assert [len(set(map(len, batch))) for batch in batches] == [1, 1, 2, 1, 1]


def test_a_cell_counts_when_it_is_whole(tmp_path):
    with Record(tmp_path, {}) as record:
        ask_all(record, ["a", "b", "cc", "dd"], most=2)
        assert list(summary(record)) == [("t", 1)]


def test_another_example_of_the_same_index_is_asked_anew(tmp_path):
    with Record(tmp_path, {}) as record:
        assert ask_all(record, ["a", "b"]) == [["a", "b"]]
        assert ask_all(record, ["a", "x"]) == [["x"]]
        assert summary(record) == {("t", 1): (1.0, ["a", "x"])}


def test_only_answers_hold_a_directory(tmp_path):
    """A model that could not be loaded leaves a request and no answer."""
    for request in ({"model": "half"}, {"model": "whole"}):
        with Record(tmp_path, request) as record:
            assert not record.answers
    with Record(tmp_path, {"model": "whole"}) as record:
        ask_all(record, ["a"])
        with pytest.raises(EvaluationError, match="another process is writing into"):
            Record(tmp_path, {"model": "whole"})
    with pytest.raises(EvaluationError, match=r"answers to another request \(model: 'whole' -> 'half'\)"):
        Record(tmp_path, {"model": "half"})


@pytest.mark.parametrize(
    "line", ["{", "[]", "7", json.dumps({"no": "answer"}), json.dumps({"key": 1, "weights_id": ""})]
)
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "answers.jsonl").write_text("{}\n" + line + "\n")
    with pytest.raises(EvaluationError, match=r"answers\.jsonl is damaged: "):
        Record(tmp_path, {})


EARLIER = [  # lines as versions without `Record` wrote them
    {"key": "300-1f5f35d8 niah_single_1 4096 0", "text": " 7402318", "tokens": 8, "reason": "eos"},
    {"key": "300-1f5f35d8 held_out 0", "sums": {"nats": 7828.0244140625, "targets": 4096.0}},
]


@pytest.mark.parametrize("line", EARLIER)
@pytest.mark.parametrize("request_", [{"seed": 42}, {"seed": 43}])
def test_answers_of_an_earlier_version_are_told_apart_and_stay(tmp_path, line, request_):
    content = json.dumps({"seed": 42}) + "\n" + json.dumps(line) + "\n"
    (tmp_path / "answers.jsonl").write_text(content)
    with pytest.raises(EvaluationError) as error:
        Record(tmp_path, request_)
    assert str(error.value) == (
        f"{tmp_path}/answers.jsonl was written by an earlier version of anchorjax, whose answers this version cannot "
        f"read: give another --out, or move {tmp_path} away; nothing in it was changed"
    )
    assert (tmp_path / "answers.jsonl").read_text() == content
