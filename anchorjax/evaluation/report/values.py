"""The numbers of runs, as tables and figures want them. What is missing is empty; what is no number is damaged."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anchorjax.evaluation.report.reading import Run


@dataclasses.dataclass(frozen=True)
class NeedleGrid:
    """Percent of the needles found, [lengths, depths]."""

    lengths: Sequence[int]
    depths: Sequence[float]
    percent_LE: np.ndarray


def check(run: Run) -> None:
    """Raises EvaluationError for a result that is not what its script writes: before the first figure is drawn."""
    for key in ("by_position", "by_context"):
        by_place(run, key)
    text_perplexity(run)
    ruler_scores(run)
    needle_grid(run)
    for evaluation in run.results:
        scores(run, evaluation)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curve(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps, and the values of `key` that are finite numbers."""
    points = [(line["step"], line[key]) for line in lines if is_number(line.get(key)) and math.isfinite(line[key])]
    return [step for step, _ in points], [value for _, value in points]


def by_place(run: Run, key: str) -> dict[str, float]:
    """Of perplexity.json, "by_position" or "by_context": perplexity by bucket, such as "64-128"."""
    found = run.results.get("perplexity", {}).get(key)
    if found is None:
        return {}
    return _buckets(run, "perplexity", key, found)


def text_perplexity(run: Run) -> dict[int, dict[str, Any]]:
    """By length: "perplexity", "bits_per_byte" and, if asked for, "last_perplexity", and "by_position" as above."""
    found = run.results.get("perplexity_text", {}).get("lengths", {})
    if not isinstance(found, dict) or not all(
        length.isdecimal() and isinstance(one, dict) for length, one in found.items()
    ):
        raise run.damaged("perplexity_text", "lengths is no table by length")
    places = {
        length: {"by_position": _buckets(run, "perplexity_text", "by_position", one["by_position"])}
        for length, one in found.items()
        if "by_position" in one
    }
    return {int(length): {**one, **places.get(length, {})} for length, one in found.items()}


def _buckets(run: Run, evaluation: str, key: str, losses: Any) -> dict[str, float]:
    """Losses as perplexities."""
    if not isinstance(losses, dict) or not all(re.fullmatch(r"\d+-\d+", bucket) for bucket in losses):
        raise run.damaged(evaluation, f"{key} is no table of buckets")
    if not all(map(is_number, losses.values())):
        raise run.damaged(evaluation, f"{key} holds what is no number")
    return {bucket: perplexity(loss) for bucket, loss in losses.items()}


def perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def upper_end(bucket: str) -> int:
    return int(bucket.partition("-")[2])


def ruler_scores(run: Run) -> dict[str, dict[int, float]]:
    """Percent by task and length."""
    scores = run.results.get("ruler", {}).get("scores", {})
    good = isinstance(scores, dict) and all(isinstance(row, dict) and row for row in scores.values())
    if not good or not all(key.isdecimal() and is_number(row[key]) for row in scores.values() for key in row):
        raise run.damaged("ruler", "scores is no table of numbers by task and length")
    return {task: {int(length): row[length] for length in row} for task, row in scores.items()}


def ruler_lengths(scores: Mapping[str, Mapping[int, float]]) -> list[int]:
    return sorted({length for row in scores.values() for length in row})


def needle_grid(run: Run) -> NeedleGrid | None:
    result = run.results.get("needle", {})
    if not {"lengths", "depths", "percent"} <= set(result):
        return None
    lengths, depths, percent = (result[key] for key in ("lengths", "depths", "percent"))
    if not all(isinstance(x, list) and x and all(map(is_number, x)) for x in (lengths, depths)):
        raise run.damaged("needle", "lengths or depths are no numbers")
    try:
        percent_LE = np.asarray(percent, float)
    except (ValueError, TypeError) as error:
        raise run.damaged("needle", "percent is no table of numbers") from error
    if percent_LE.shape != (len(lengths), len(depths)):
        raise run.damaged(
            "needle", f"percent has shape {percent_LE.shape} with {len(lengths)} lengths and {len(depths)} depths"
        )
    return NeedleGrid(lengths, depths, percent_LE)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings: {"a": {"b": 1}} -> {"a.b": 1}."""
    found = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def scores(run: Run, evaluation: str) -> dict[str, float]:
    """What an evaluation's "scores" hold, at whatever depth."""
    found = run.results.get(evaluation, {}).get("scores", {})
    if not isinstance(found, dict):
        raise run.damaged(evaluation, "scores is no table")
    return {key: value for key, value in flat(found).items() if is_number(value)}


def different(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Configuration keys in which runs differ, with the value of each run; None for a key that it does not have."""
    flats = [flat(run.config) for run in runs if run.config is not None]
    keys = dict.fromkeys(key for one in flats for key in one)
    rows = {key: [one.get(key) for one in flats] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}
