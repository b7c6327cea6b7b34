"""RULER's metrics: which share of the references an answer holds, or whether it holds any; and their averages."""

import re
from collections.abc import Iterable, Mapping, Sequence

from anchorjax.errors import EvaluationError
from anchorjax.evaluation.ruler.sample import Sample
from anchorjax.evaluation.ruler.tasks import TASKS

NOT_IN_PAPER = ("niah_multikey_3", "cwe")  # arXiv 2411.13476 leaves them out for LLaMA-2-7B
_CONTROL = re.compile("[\x00-\x1f]")


def clean(prediction: str) -> str:
    """Without white space at its ends, and with a newline for each control character."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def match(metric: str, prediction: str, references: Sequence[str]) -> float:
    """From 0 to 1. References are looked for anywhere in the cleaned prediction, whatever the case of letters."""
    found = [reference.lower() in clean(prediction).lower() for reference in references]
    return float(any(found)) if metric == "part" else sum(found) / len(found)


def score(samples: Iterable[Sample], predictions: Iterable[str]) -> dict[str, float]:
    """Percent of each task that is among the samples, all of one length.

    Raises:
      EvaluationError: not as many predictions as samples, or samples of several lengths.
    """
    matches: dict[str, list[float]] = {}
    samples, predictions = list(samples), list(predictions)
    if len(samples) != len(predictions):
        raise EvaluationError(f"{len(predictions)} predictions for {len(samples)} samples; there must be one for each")
    lengths = sorted({sample.length for sample in samples})
    if len(lengths) > 1:
        raise EvaluationError(f"samples of lengths {lengths}; scores are of one length")
    for sample, prediction in zip(samples, predictions, strict=True):
        value = match(TASKS[sample.task].metric, prediction, sample.references)
        matches.setdefault(sample.task, []).append(value)
    return {task: 100 * sum(values) / len(values) for task, values in matches.items()}


def averages(scores: Mapping[str, float]) -> dict[str, float]:
    """Percent: "ruler", the mean of all 13 tasks, and "paper", of 11; each only if all of its tasks are there."""
    sets = {"ruler": list(TASKS), "paper": [task for task in TASKS if task not in NOT_IN_PAPER]}
    return {
        name: sum(scores[task] for task in tasks) / len(tasks)
        for name, tasks in sets.items()
        if all(task in scores for task in tasks)
    }
