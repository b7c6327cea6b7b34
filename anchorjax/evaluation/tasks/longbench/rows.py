"""The files of LongBench's data.zip: NAME.jsonl, where each line is an object with one sample."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from anchorjax.data.documents import BadRow, utf8
from anchorjax.data.sources.jsonl import Lines, parse
from anchorjax.data.text import text_file
from anchorjax.errors import EvaluationError
from anchorjax.evaluation.tasks.longbench.metrics import RETRIEVED
from anchorjax.evaluation.tasks.longbench.tasks import PUBLISHED, TASKS, Task

_LONGEST = 2**30  # bytes of a line


@dataclasses.dataclass(frozen=True)
class Row:
    """One sample.

    Attributes:
      prompt: of the task, with the sample's context and input in it, whole.
      answers: any of them is right.
      length: words (Chinese: characters) of the context, input and answers, as the file says.
      classes: names among which an answer chooses; none for most tasks.
    """

    prompt: str = dataclasses.field(repr=False)
    answers: tuple[str, ...]
    length: int
    classes: tuple[str, ...]


def find(directory: Path, names: Sequence[str] = (), default: Sequence[str] = PUBLISHED) -> dict[str, Path]:
    """Files by task.

    Args:
      names: of tasks that must be there; without any, those of `default` that are.

    Raises:
      EvaluationError: no such directory, task or file.
    """
    if not directory.is_dir():
        raise EvaluationError(f"--data={directory} is not a directory")
    for name in names:
        if name not in TASKS:
            raise EvaluationError(f"there is no task {name!r} in LongBench; allowed: {', '.join(TASKS)}")
    files = {name: directory / f"{name}.jsonl" for name in names or default}
    there = {name: file for name, file in files.items() if file.is_file()}
    missing = [name for name in names if name not in there]
    if missing:
        raise EvaluationError(f"{missing[0]}: there is no file {files[missing[0]]}")
    if not there:
        raise EvaluationError(f"--data={directory} holds no file of LongBench, such as {default[0]}.jsonl")
    return there


def read(file: Path, task: Task, samples: int = 0) -> list[Row]:
    """The first samples of a file; 0 takes all.

    Raises:
      EvaluationError: a line that is no sample of the task, named by file and number, or none at all.
      DataError: the file cannot be read.
    """
    lines, rows = Lines(file, 0, None), []
    for number, line in lines.read(_LONGEST):
        try:
            if line is None:
                raise BadRow(f"longer than {_LONGEST} bytes")
            rows.append(_row(parse(line), task))
        except BadRow as error:
            raise EvaluationError(f"{lines.place(number)} is no sample of {task.name}: {error}") from error
        if len(rows) == samples:
            break
    if not rows:
        raise EvaluationError(f"{file} holds no sample")
    text_file.say_marks(str(file), lines.is_marked())
    return rows


def _row(value: Any, task: Task) -> Row:
    """Raises BadRow."""
    if not isinstance(value, dict):
        raise BadRow(f"a {type(value).__name__}; it must be an object")
    texts = {name: value.get(name) for name in ("context", "input")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise BadRow(f"{name!r} is {text!r}; it must be a string")
        utf8(text, name)
    answers = _names(value, "answers")
    pattern = RETRIEVED.get(task.metric)
    if pattern and not all(re.search(pattern, answer) for answer in answers):
        raise BadRow(f"'answers' is {list(answers)}; each must hold {pattern!r}")
    length = value.get("length", 0 if not task.is_even else None)
    if type(length) is not int:
        raise BadRow(f"'length' is {length!r}; it must be a whole number")
    classes = _names(value, "all_classes") if task.metric == "classification" else ()
    return Row(task.prompt.format(**texts), answers, length, classes)


def _names(value: dict[str, Any], field: str) -> tuple[str, ...]:
    found = value.get(field)
    if not isinstance(found, list) or not found or not _all_texts(found):
        raise BadRow(f"{field!r} must be a list of strings, and not be empty")
    return tuple(found)


def _all_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
