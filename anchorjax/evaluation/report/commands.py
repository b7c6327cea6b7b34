"""The commands behind a page: those that trained and evaluated its runs, and those that would make what is missing."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchorjax.evaluation.report.reading import TITLES, Run
from anchorjax.evaluation.report.values import flat, ruler_lengths, ruler_scores

# What a result may say of how it was asked, in the order of the scripts' options of these names.
OPTIONS = ("dtype", "rope_theta", "context", "text", "lengths", "depths", "tasks", "samples", "rows", "seed")
OPTIONS += ("template", "haystack", "essays", "squad", "hotpot", "last", "window", "stride")


def made(run: Run, evaluation: str) -> str:
    """The command that made a result, from what the result says of it.

    Whatever changes no answer, such as the size of a batch, is not recorded and not here.
    """
    result = run.results[evaluation]
    # Nothing and 0 are what the scripts take without the option, but for a seed.
    values = {key: result[key] for key in OPTIONS if result.get(key) or (key == "seed" and key in result)}
    if isinstance(values.get("depths"), list):
        values["depths"] = len(values["depths"])
    if isinstance(values.get("lengths"), dict):  # of texts: what was found at each
        values["lengths"] = list(values["lengths"])
    if evaluation == "ruler":
        scores, steps = ruler_scores(run), result.get("steps")
        values |= {"tasks": list(scores), "lengths": ruler_lengths(scores)}
        if isinstance(steps, list) and len(steps) > 1:
            values["last"] = len(steps)
    config = flat(run.config or {})
    own = {"dtype": config.get("model.compute_dtype"), "rope_theta": config.get("rope.theta")}
    given = [key for key in OPTIONS if key in values and values[key] != own.get(key)]
    return _command(run, evaluation, {key: values[key] for key in given})


def missing(run: Run) -> list[str]:
    """Evaluations without a result. Only a run has a validation split to score."""
    possible = [evaluation for evaluation in TITLES if run.config is not None or evaluation != "perplexity"]
    return [evaluation for evaluation in possible if evaluation not in run.results]


def would_make(run: Run, evaluation: str) -> str:
    """The command that would make a result: at a run's row length, as the scripts' own may be more than it takes."""
    values: dict[str, Any] = {"text": "public_domain"} if evaluation == "perplexity_text" else {}
    if run.config is not None and evaluation in ("ruler", "needle", "perplexity_text"):
        values["lengths"] = run.config["data"].get("row_length")
    return _command(run, evaluation, values)


def _command(run: Run, evaluation: str, values: dict[str, Any]) -> str:
    parts = ["python", f"eval/{'perplexity' if evaluation == 'perplexity_text' else evaluation}.py"]
    if run.config is not None:
        parts.append(f"--workdir={run.path}")
    else:
        model = _model(run)
        parts.append(f"--hf={model}")
        if run.path.expanduser() != Path("eval-results") / model.name:
            values = values | {"out": run.file(evaluation).parent}
    parts += [f"--{key.replace('_', '-')}={_text(value)}" for key, value in values.items()]
    return shlex.join(parts)


def _model(run: Run) -> Path:
    """The Hugging Face directory that results are of."""
    named = (result.get("model") for result in run.results.values())
    return Path(next((name for name in named if isinstance(name, str) and name), run.path.name))


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(_text, value))
    return str(value)
