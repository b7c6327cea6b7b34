"""Commands for the evaluations that a page has no result of."""

import shlex
from collections.abc import Sequence
from typing import Any

from anchorjax.config import max_position
from anchorjax.pages.runs.reading import Run

STANDS = "LONGBENCH stands for the directory of LongBench's files, TEXTS for JSONL, Parquet or text files."
# What a command needs beside a model and lengths.
_INPUTS = {
    "perplexity_text": ["--text=TEXTS"],
    "longppl": ["--text=TEXTS"],
    "longbench": ["--data=LONGBENCH"],
    "harness": ["--tasks=hellaswag"],
}
# Defaults of longppl and rope_precision that a shorter model cannot meet.
_SHORT_CONTEXT = 4096
_ROPE_ROWS = 2048


def suggestion(run: Run, evaluation: str) -> str:
    """A command for an evaluation that was not made, at the model's own length, as far as that is known."""
    options = [*_INPUTS.get(evaluation, ())]
    if run.config is not None:
        model, context = [f"--workdir={run.path}"], max_position(run.config["data"])
    else:
        model, context = _model_of_results(run), _of_results(run, "context") or 0
        options += [f"--context={context}"] if context else []
        options += [f"--out={run.file(evaluation).parent}"]
    if context:
        options += _lengths(evaluation, context)
    return shlex.join(["anchorjax", "evaluate", evaluation.removesuffix("_text"), *model, *options])


def _model_of_results(run: Run) -> Sequence[str]:
    """A Hugging Face directory has no steps; one of ours has, also if `anchorjax convert` made it."""
    name = _of_results(run, "model") or run.path.name
    found = [result.get(key) for result in run.results.values() for key in ("step", "steps")]
    return [f"--{'hf' if all(one in (None, [None]) for one in found) else 'workdir'}={name}"]


def _of_results(run: Run, key: str) -> Any:
    return next((result[key] for result in run.results.values() if result.get(key)), None)


def _lengths(evaluation: str, context: int) -> list[str]:
    """The lengths of rows, and what must be shorter than they are."""
    if evaluation in ("perplexity_text", "ruler", "needle"):
        return [f"--lengths={context}"]
    if evaluation == "longppl":
        short = [f"--short-context={context // 8}", f"--stride={max(1, context // 32)}"]
        return [f"--lengths={context}", *(short if context <= _SHORT_CONTEXT + 1 else ())]
    if evaluation == "rope_precision" and context < _ROPE_ROWS:
        rows = [str(length) for length in (context // 8, context // 4, context // 2, context) if length]
        return [f"--lengths={','.join(rows)}", f"--tokens={context}", f"--document-tokens={context // 8}"]
    return []
