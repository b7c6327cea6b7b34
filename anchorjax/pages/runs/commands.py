"""The commands behind a page: those that trained and evaluated its runs, and those that would make what is missing."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anchorjax.pages.runs.reading import TITLES, Run
from anchorjax.pages.runs.values import flat, ruler_lengths, ruler_scores
from anchorjax.evaluation.texts import SHIPPED
from anchorjax.files import read_json

_MODEL = ("dtype", "rope_theta", "context")
_TEXTS = ("text", "text_key", "lengths", "samples", "seed")
# The options of each script that change what it finds, and by whose names its result tells them.
OPTIONS = {
    "perplexity": ("rows",),
    "perplexity_text": (*_MODEL, *_TEXTS, "last", "window", "stride"),
    "longppl": (
        *(*_MODEL, *_TEXTS, "shortest", "evaluator", "evaluator_context", "short_context", "stride", "alpha", "beta"),
        "key_tokens",
    ),
    "ruler": (*_MODEL, "lengths", "tasks", "samples", "seed", "template", "essays", "squad", "hotpot", "last"),
    "needle": (*_MODEL, "lengths", "depths", "samples", "seed", "template", "haystack", "essays"),
    "longbench": (*_MODEL, "data", "tasks", "samples", "max_length", "template"),
    "harness": (*_MODEL, "tasks", "include_path", "num_fewshot", "limit", "seed", "lengths", "bos", "template"),
    "rope_precision": (
        *("rope_theta", "context", "experiments", "variants", "shifts", "reference", "tokens", "lengths"),
        *("document_tokens", "samples", "seed", "essays", "batch_size"),
    ),
}
_ZERO_COUNTS = ("seed", "num_fewshot", "reference", "alpha", "beta")  # elsewhere it is as good as no option
DATA, TEXTS = "LONGBENCH", "TEXTS"  # stand for what is not known
_PROMPT, _ROW = 4096, 2048  # the longest that ruler.py and needle.py, and rope_precision.py, take of themselves
_SHIPPED_TOKENS = 4096  # of the longest document that ships, 3,572 words: some more, by most tokenizers
_SCRIPTS = {"perplexity_text": "perplexity"}


def asked(run: Run, evaluation: str) -> dict[str, Any]:
    """By option, what made a result.

    What is the run's own anyway is left out, and so is what changes no answer, such as the size of a batch.
    """
    result = run.results[evaluation] | run.requests[evaluation]
    result |= _SPELT[evaluation](run, result) if evaluation in _SPELT else {}
    config = flat(run.config or {})
    own = {
        "dtype": config.get("model.compute_dtype"),
        "rope_theta": config.get("rope.theta"),
        "context": config.get("data.seq_len"),
        "text_key": "text",  # every script's default
    }
    return {
        key: result[key]
        for key in OPTIONS[evaluation]
        if key in result
        and result[key] != own.get(key)
        and (result[key] not in (None, "", [], False) or (result[key] == 0 and key in _ZERO_COUNTS))
    }


def _spelt_ruler(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    scores, steps = ruler_scores(run), result.get("steps")
    last = len(steps) if isinstance(steps, list) and len(steps) > 1 else None
    return {"tasks": list(scores), "lengths": ruler_lengths(scores), "last": last}


def _spelt_needle(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    depths = result.get("depths")
    return {"depths": len(depths) if isinstance(depths, list) else None}


def _spelt_longppl(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    if "key_tokens_file" in result:  # which the script takes in place of everything that chooses key tokens
        kept = (*_MODEL, "text", "text_key")
        return dict.fromkeys(set(OPTIONS["longppl"]) - set(kept)) | {"key_tokens": result["key_tokens_file"]}
    rule, evaluator = result.get("rule"), result.get("evaluator")
    spelt = _spelt_texts(run, result) | {"evaluator": None}
    if isinstance(rule, dict):
        spelt |= rule | {"short_context": rule.get("context")}
    spelt["context"] = result.get("context")  # not the rule's
    if isinstance(evaluator, dict) and (
        result.get("evaluator_context") or evaluator.get("model") != result.get("model")
    ):
        spelt["evaluator"] = evaluator.get("model")
        if evaluator.get("dtype") != result.get("dtype"):  # one option for both, which was "auto" then
            spelt["dtype"] = None
    return spelt


def _spelt_texts(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    lengths = result.get("lengths")
    return {"lengths": list(lengths) if isinstance(lengths, dict) else lengths}


def _spelt_longbench(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    scores = result.get("scores")
    return {"tasks": list(scores) if isinstance(scores, dict) else None, "data": result.get("data") or DATA}


def _spelt_harness(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    return {"bos": "always" if result.get("bos") and run.config is None else None}


_SPELT: dict[str, Callable[[Run, dict[str, Any]], dict[str, Any]]] = {
    "ruler": _spelt_ruler,
    "needle": _spelt_needle,
    "longppl": _spelt_longppl,
    "perplexity_text": _spelt_texts,
    "longbench": _spelt_longbench,
    "harness": _spelt_harness,
}


def made(run: Run, evaluation: str) -> str:
    """The command that made a result."""
    return _command(run, evaluation, asked(run, evaluation))


def missing(run: Run) -> list[str]:
    """Evaluations without a result. Only a run has a validation split to score."""
    possible = [evaluation for evaluation in TITLES if run.config is not None or evaluation != "perplexity"]
    return [evaluation for evaluation in possible if evaluation not in run.results]


def would_make(run: Run, evaluation: str) -> str:
    """A command that would make a result, at lengths that the model takes, where the scripts' own may be longer."""
    length, context = flat(run.config or {}).get("data.seq_len"), _context(run)
    fitting: dict[str, dict[str, Any]] = {
        "perplexity_text": {"text": SHIPPED},  # without a length it takes 4K at most
        "longppl": _would_take(context),
        "longbench": {"data": DATA},
        "harness": {"tasks": "hellaswag"},
    }
    if isinstance(length, int):
        fitting |= {
            "perplexity_text": {"text": _long_enough(length), "lengths": length},
            "longppl": _would_take(length) | {"lengths": length},
        }
    fits = length if isinstance(length, int) else context if context and context < _PROMPT else None
    if fits:
        fitting |= {"ruler": {"lengths": fits}, "needle": {"lengths": fits}}
        if fits < _ROW:
            sizes = {"tokens": min(512, fits), "lengths": [fits // 2, fits], "document_tokens": min(256, fits // 4)}
            fitting["rope_precision"] = sizes
    return _command(run, evaluation, fitting.get(evaluation, {}))


def _context(run: Run) -> int | None:
    """Of the model that results are of, where one of them tells."""
    return next((found["context"] for found in run.results.values() if isinstance(found.get("context"), int)), None)


def _would_take(context: int | None) -> dict[str, Any]:
    """Of longppl.py, whose own lengths are longer than what ships, and its short context as long as short models'."""
    if context is None or context > _SHIPPED_TOKENS + 1:
        return {"text": TEXTS}
    return {"text": _long_enough(context), "lengths": context, "short_context": context // 4}


def _long_enough(length: int) -> str:
    return SHIPPED if length <= _SHIPPED_TOKENS else TEXTS


def _command(run: Run, evaluation: str, values: dict[str, Any]) -> str:
    parts = ["python", f"eval/{_SCRIPTS.get(evaluation, evaluation)}.py"]
    if run.config is not None:
        parts.append(f"--workdir={run.path}")
    else:
        model = _model(run)
        parts.append(f"--{_kind(model)}={model}")
        if run.path.expanduser() != Path("eval-results") / model.name:
            values = values | {"out": run.file(evaluation).parent}
    if "evaluator" in values:
        kind = f"evaluator_{_kind(Path(str(values['evaluator'])))}"
        values = {(kind if key == "evaluator" else key): value for key, value in values.items()}
    parts += [f"--{key.replace('_', '-')}={_text(value)}" for key, value in values.items()]
    return shlex.join(parts)


def _kind(model: Path) -> str:
    """The option that takes a model's directory: "workdir" for runs and what anchorjax convert wrote, else "hf"."""
    config = read_json(model / "config.json")
    return "hf" if config is None or "model_type" in config else "workdir"


def _model(run: Run) -> Path:
    """The directory of the model that results are of."""
    named = (result.get("model") for result in run.results.values())
    return Path(next((name for name in named if isinstance(name, str) and name), run.path.name))


def _text(value: Any) -> str:
    return ",".join(map(_text, value)) if isinstance(value, list) else str(value)
