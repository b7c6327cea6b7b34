"""RULER's metrics: which share of the references an answer holds, or whether it holds any; and their averages."""

import re
from collections.abc import Mapping, Sequence

from anchorjax.evaluation.tasks.ruler.tasks import TASKS

NOT_IN_PAPER = ("niah_multikey_3", "cwe")  # arXiv 2411.13476 leaves them out for LLaMA-2-7B
_CONTROL = re.compile("[\x00-\x1f]")


def clean(prediction: str) -> str:
    """Without white space at its ends, and with a newline for each control character."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def match(metric: str, prediction: str, references: Sequence[str]) -> float:
    """From 0 to 1. References are looked for anywhere in the cleaned prediction, whatever the case of letters."""
    found = [reference.lower() in clean(prediction).lower() for reference in references]
    return float(any(found)) if metric == "part" else sum(found) / len(found)


def averages(scores: Mapping[str, float]) -> dict[str, float]:
    """Percent: "scored", the mean of what is there; "ruler", of all 13 tasks, and "paper", of 11, if they are there."""
    paper = [task for task in TASKS if task not in NOT_IN_PAPER]
    sets = {"scored": list(scores), "ruler": list(TASKS), "paper": paper}
    return {
        name: sum(scores[task] for task in tasks) / len(tasks)
        for name, tasks in sets.items()
        if tasks and all(task in scores for task in tasks)
    }
