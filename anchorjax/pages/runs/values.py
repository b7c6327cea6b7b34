"""The numbers of runs, as tables and figures want them. What is missing is empty; what is no number is damaged."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anchorjax.evaluation.tasks.perplexity import perplexity
from anchorjax.pages.runs.reading import Run


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
    by_length(run, "longppl")
    lm_eval(run)
    for key in ("scores", "averages"):
        leaves(run, "longbench", key)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curve(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps, and the values of `key` that are finite numbers."""
    points = [(line["step"], line[key]) for line in lines if is_number(line.get(key)) and math.isfinite(line[key])]
    return [step for step, _ in points], [value for _, value in points]


def by_place(run: Run, key: str) -> dict[str, float]:
    """Perplexity by bucket, such as "64-128", from perplexity.json: "by_position" or "by_context"."""
    found = run.results.get("perplexity", {}).get(key)
    if found is None:
        return {}
    return _buckets(run, "perplexity", key, found)


def text_perplexity(run: Run) -> dict[int, dict[str, Any]]:
    """By length: "perplexity", "bits_per_byte" and, if asked for, "last_perplexity", and "by_position" as above."""
    found = by_length(run, "perplexity_text")
    for one in found.values():
        if "by_position" in one:
            one["by_position"] = _buckets(run, "perplexity_text", "by_position", one["by_position"])
    return found


def by_length(run: Run, evaluation: str) -> dict[int, dict[str, Any]]:
    """What is known of texts of each length."""
    found = run.results.get(evaluation, {}).get("lengths", {})
    if not isinstance(found, dict) or not all(key.isdecimal() and isinstance(found[key], dict) for key in found):
        raise run.damaged(evaluation, "lengths is no table by length")
    return {int(length): dict(one) for length, one in found.items()}


def _buckets(run: Run, evaluation: str, key: str, losses: Any) -> dict[str, float]:
    """Losses as perplexities."""
    if not isinstance(losses, dict) or not all(re.fullmatch(r"\d+-\d+", bucket) for bucket in losses):
        raise run.damaged(evaluation, f"{key} is no table of buckets")
    if not all(map(is_number, losses.values())):
        raise run.damaged(evaluation, f"{key} holds what is no number")
    return {bucket: perplexity(loss) for bucket, loss in losses.items()}


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


def leaves(run: Run, evaluation: str, key: str) -> dict[str, float]:
    """The numbers that one key of a result holds, at whatever depth."""
    found = run.results.get(evaluation, {}).get(key, {})
    if not isinstance(found, dict):
        raise run.damaged(evaluation, f"{key} is no table")
    return {label: value for label, value in flat(found).items() if is_number(value)}


def scores(run: Run, evaluation: str) -> dict[str, float]:
    """What `settings` leaves out of a result: its floats and the numbers in its tables, with dots between keys."""
    shown = settings(run, evaluation)
    rest = {key: value for key, value in run.results.get(evaluation, {}).items() if key not in shown}
    return {label: value for label, value in flat(rest).items() if is_number(value)}


def lm_eval(run: Run) -> dict[str, tuple[float, float | None]]:
    """By task and metric of lm-eval, a score and its standard error, if it has one."""
    found = leaves(run, "harness", "results") | leaves(run, "harness", "groups")
    scores = {}
    for label, value in found.items():
        name, comma, kind = label.rpartition(",")  # acc,none; exact_match,strict-match
        if not name.endswith("_stderr"):
            error = found.get(f"{name}_stderr{comma}{kind}")
            scores[f"{name} ({kind})" if comma and kind != "none" else name or label] = value, error
    return scores


def different(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Configuration keys in which runs differ, with the value of each run; None for a key that it does not have."""
    flats = [flat(run.config) for run in runs if run.config is not None]
    keys = dict.fromkeys(key for one in flats for key in one)
    rows = {key: [one.get(key) for one in flats] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def settings(run: Run, evaluation: str) -> dict[str, Any]:
    """What was asked: plain values of the request, and of the result beside its tables."""
    found = run.results.get(evaluation, {}) | run.requests[evaluation] if evaluation in run.results else {}
    return {
        key: value
        for key, value in found.items()
        if key not in ("files", "model", "tokenizer", "notes", "commands", "material", "weights", "percent")
        and value not in (None, "", [])
        and (not isinstance(value, dict | float) or key == "rope_theta")
    }
