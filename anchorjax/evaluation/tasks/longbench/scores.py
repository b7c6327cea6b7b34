"""Scores of answers, and their averages, as THUDM/LongBench's eval.py and tables have them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from anchorjax.evaluation.tasks.longbench.metrics import METRICS
from anchorjax.evaluation.tasks.longbench.rows import Row
from anchorjax.evaluation.tasks.longbench.tasks import PUBLISHED, TASKS, Task

_LENGTHS = {"0-4k": (0, 4000), "4-8k": (4000, 8000), "8k+": (8000, float("inf"))}  # in words
_LANGUAGES = {"en": ("en", "code"), "zh": ("zh", "code"), "all": ("en", "zh", "code")}  # code counts in each


def score(task: Task, prediction: str, row: Row) -> float:
    """Percent: the most that the prediction has with any of the answers."""
    if task.answers_in_a_line:
        prediction = prediction.lstrip("\n").split("\n")[0]
    classes = (row.classes,) if task.metric == "classification" else ()
    return 100 * max(METRICS[task.metric](prediction, answer, *classes) for answer in row.answers)


def by_length(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of the samples of 0 to 4,000 words, 4,000 to 8,000 and more, where there are any: LongBench-E.

    Args:
      lines: {"score", "words"} of each sample.
    """
    parts = {
        name: [line["score"] for line in lines if low <= line["words"] < high] for name, (low, high) in _LENGTHS.items()
    }
    return {name: _mean(values) for name, values in parts.items() if values}


def averages(scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Averages percents by task: by category of English, Chinese and all tasks, and "overall", the mean of those.

    Each is there only if all of its tasks are; LongBench-E has no part in them.
    """
    found = {name: _categories(scores, languages) for name, languages in _LANGUAGES.items()}
    return {name: means for name, means in found.items() if means}


def _categories(scores: Mapping[str, float], languages: Sequence[str]) -> dict[str, float]:
    tasks: dict[str, list[str]] = {}
    for name in PUBLISHED:
        if TASKS[name].language in languages:
            tasks.setdefault(TASKS[name].category, []).append(name)
    whole = {category: names for category, names in tasks.items() if all(name in scores for name in names)}
    means = {category: _mean(scores[name] for name in names) for category, names in whole.items()}
    return means | ({"overall": _mean(means.values())} if len(means) == len(tasks) else {})


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
