"""The metrics by hand."""

import pytest

from anchorjax.evaluation.tasks import ruler
from anchorjax.evaluation.tasks.ruler.scores import clean, match


@pytest.mark.parametrize(
    ("metric", "prediction", "references", "expected"),
    [
        ("all", "1234567.", ["1234567"], 1.0),
        ("all", "1, 2 and 4", ["1", "2", "3", "4"], 0.75),
        ("all", "", ["x"], 0.0),
        ("all", "the ABCDE", ["abcde", "Fghij"], 0.5),
        ("all", "catalog", ["cat"], 1.0),  # anywhere in the text, as RULER has it
        ("part", "It was PARIS, I think", ["London", "paris", "Rome"], 1.0),
        ("part", "Berlin", ["London", "Paris"], 0.0),
        ("part", "London and Paris", ["London", "Paris"], 1.0),
        ("all", "New\x00York", ["New\nYork"], 1.0),
    ],
)
def test_matches(metric, prediction, references, expected):
    assert match(metric, prediction, references) == expected


def test_cleaning():
    assert clean("  \n a\tb\x00\x1fc d\x7f\n\x00 ") == "a\nb\n\nc d\x7f"


def test_averages():
    scores = {task: float(i) for i, task in enumerate(ruler.TASKS)}
    assert len(scores) == 13
    without = [value for task, value in scores.items() if task not in ("niah_multikey_3", "cwe")]
    assert ruler.averages(scores) == {"scored": 6.0, "ruler": 6.0, "paper": sum(without) / 11} and len(without) == 11
    del scores["cwe"]
    assert ruler.averages(scores) == {"scored": sum(scores.values()) / 12, "paper": sum(without) / 11}
    del scores["vt"]
    assert ruler.averages(scores) == {"scored": sum(scores.values()) / 11}
    assert ruler.averages({}) == {}
    metrics = {task: entry.metric for task, entry in ruler.TASKS.items()}
    assert [task for task, metric in metrics.items() if metric == "part"] == ["qa_1", "qa_2"]
