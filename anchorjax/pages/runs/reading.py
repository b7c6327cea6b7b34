"""What the directory of a run, or of a model's results, holds. What is damaged is refused by its file's name."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchorjax.config import upgraded
from anchorjax.errors import EvaluationError, UsageError, WorkdirError
from anchorjax.evaluation.record import ANSWERS
from anchorjax.files import read_json
from anchorjax.pages.figures import MOST
from anchorjax.pages.page import PNG_SIGNATURE
from anchorjax.training.workdir import load_commands

# The evaluations that have a section of their own; any other task gets a table of its numbers.
TITLES = {
    "perplexity": "Perplexity",
    "perplexity_text": "Perplexity of texts",
    "longppl": "LongPPL",
    "ruler": "RULER",
    "needle": "Needle in a haystack",
    "longbench": "LongBench",
    "harness": "Tasks of lm-eval",
    "rope_precision": "Precision of RoPE",
}
# Where each evaluation leaves its result, in eval/ of a run and in eval-results/MODEL.
_FILES = {evaluation: f"{evaluation}/{evaluation}.json" for evaluation in TITLES}
_FILES["perplexity_text"] = "perplexity-text/perplexity.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of ours, or the results of a Hugging Face directory.

    Attributes:
      name: short, and no other run's on the page.
      path: as it was given.
      config: config.json; None for results alone, which have no commands, summary and lines either.
      commands: what was typed to train it.
      summary: summary.json; empty before the end of training.
      train, held_out: lines of metrics.jsonl.
      results: by evaluation, what its JSON holds.
      requests: by evaluation, all that its answers depend on; empty for one that keeps no answers.
      pictures: names and PNG files of the evaluation of RoPE's precision.
    """

    name: str
    path: Path
    config: dict[str, Any] | None
    commands: Sequence[str]
    summary: dict[str, Any]
    train: Sequence[dict[str, Any]]
    held_out: Sequence[dict[str, Any]]
    results: dict[str, dict[str, Any]]
    requests: dict[str, dict[str, Any]]
    pictures: Sequence[tuple[str, bytes]]

    def file(self, evaluation: str) -> Path:
        return _files(self.path.expanduser(), self.config is not None)[evaluation]

    def damaged(self, evaluation: str, why: str) -> EvaluationError:
        return EvaluationError(f"{self.file(evaluation)} is damaged: {why}")


def read(paths: Sequence[Path]) -> list[Run]:
    """
    Raises:
      UsageError: no directory, one of them twice, or more than can be told apart in a figure.
      WorkdirError, EvaluationError: a directory that is neither a run nor results, or a file that is damaged.
    """
    resolved = [path.expanduser().resolve() for path in paths]
    twice = [path for number, path in enumerate(paths) if resolved[number] in resolved[:number]]
    if twice:
        raise UsageError(f"{twice[0]} is given twice")
    if len(paths) > MOST:
        raise UsageError(f"{len(paths)} runs are too many for one page: at most {MOST} can be told apart in a figure")
    names = [path.name for path in resolved]
    return [
        _read(path, str(path) if names.count(name) > 1 or not name else name)
        for path, name in zip(paths, names, strict=True)
    ]


def _read(path: Path, name: str) -> Run:
    directory = path.expanduser()
    config = read_json(directory / "config.json", WorkdirError)
    if config is not None and not isinstance(config.get("data"), dict):
        raise EvaluationError(
            f"{path} is a model's directory and no run; what was evaluated of it is in eval-results/{directory.name}, "
            "unless --out said otherwise"
        )
    is_run = config is not None
    files = _files(directory, is_run)
    results = {key: result for key, file in files.items() if (result := read_json(file, WorkdirError)) is not None}
    if not is_run and not results:
        raise EvaluationError(
            f"{path} holds neither a run (there is no config.json) nor results (there is no needle/needle.json, "
            "and none of another evaluation)"
        )
    lines = _lines(directory / "metrics.jsonl") if is_run else []
    return Run(
        name=name,
        path=path,
        config=upgraded(config) if is_run else None,
        commands=load_commands(directory) if is_run else [],
        summary=(read_json(directory / "summary.json", WorkdirError) or {}) if is_run else {},
        train=[line for line in lines if line["kind"] == "train"],
        held_out=[line for line in lines if line["kind"] == "eval"],
        results=results,
        requests={key: _request(files[key].with_name(ANSWERS)) for key in results},
        pictures=_pictures(files["rope_precision"].parent),
    )


def _files(directory: Path, is_run: bool) -> dict[str, Path]:
    """The file of each evaluation in TITLES, which need not exist, and then those of all other tasks that left one."""
    base = directory / "eval" if is_run else directory
    files = {evaluation: base / file for evaluation, file in _FILES.items()}
    if not is_run:
        files["perplexity_text"] = files.pop("perplexity")  # a Hugging Face directory has no validation split
    others = sorted(file for file in base.glob("*/*.json") if file.stem == file.parent.name)
    return files | {file.stem: file for file in others if file.stem not in TITLES}


def _lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines: a running job, or a kill, may have left half of the last one."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EvaluationError(f"{file} cannot be read: {error.strerror}") from error
    found = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            found.append(json.loads(line))
            if type(found[-1]["step"]) is not int or not isinstance(found[-1]["kind"], str):
                raise ValueError("step and kind are not what they should be")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EvaluationError(f"{file}:{number} is damaged: {error!r}") from error
    return found


def _request(file: Path) -> dict[str, Any]:
    """The first line of answers; see `Results`."""
    try:
        with open(file, "rb") as answers:
            request = json.loads(answers.readline())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{file} is damaged: {error}") from error
    if not isinstance(request, dict):
        raise EvaluationError(f"{file} is damaged: it does not begin with a request")
    return request


def _pictures(folder: Path) -> list[tuple[str, bytes]]:
    found = []
    for file in sorted(folder.glob("*.png")):
        content = file.read_bytes()
        if not content.startswith(PNG_SIGNATURE) or b"IEND" not in content[-12:]:
            raise EvaluationError(f"{file} is damaged: it is no whole PNG")
        found.append((file.stem, content))
    return found
