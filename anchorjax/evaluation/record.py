"""The record of an evaluation: one line for each answer, from which every table is computed.

answers.jsonl   the request; then, in the order in which they came, a line for each command and for each answer
NAME.json       a summary of these lines; NAME.png its picture

A command's line holds what was typed, what its summary depends on, and its cells: the (task, length) pairs that it
asked, and how many answers each has. An answer's line holds task, length, index, score, weights_id and the output, and
`id` where the same index may stand for another example.
"""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from anchorjax import processes
from anchorjax.errors import EvaluationError
from anchorjax.files import write_atomically

ANSWERS = "answers.jsonl"
Line = dict[str, Any]
Key = tuple[str, str, int, int | str]


@dataclasses.dataclass(frozen=True)
class Cell:
    """All answers to one task at one length.

    Attributes:
      facts: what else the command knew of the cell, such as how many documents were too short.
      lines: by checkpoint, in the order asked for; each has the lines in the order of their indices.
    """

    task: str
    length: int
    facts: dict[str, Any]
    lines: Sequence[Sequence[Line]]

    def scores(self) -> list[float]:
        """Mean scores of the checkpoints."""
        return [sum(line["score"] for line in lines) / len(lines) for lines in self.lines]

    def mean(self) -> float:
        return sum(self.scores()) / len(self.lines)


class Record:
    """A directory of one evaluation. Use as a context manager: no other job may write into it meanwhile.

    All processes of a job have the same answers in memory; process 0 alone reads and writes the files.
    """

    def __init__(
        self, directory: Path, request: Mapping[str, Any], earlier: Callable[[], Mapping[str, Any]] | None = None
    ):
        """
        Args:
          request: JSON; all that every answer depends on.
          earlier: returns the same request as an earlier version wrote it; process 0 replaces that by `request`.

        Raises:
          EvaluationError: the directory holds answers to another request or of an earlier version, is in use,
            damaged, or cannot be written.
          UsageError: the job's processes have different requests.
        """
        self.directory, self.request, self._earlier = directory, json.loads(json.dumps(request)), earlier
        self.answers: dict[Key, Line] = {}
        self._commands: list[Line] = []
        self._file: BinaryIO | None = None  # process 0's
        processes.same({f"the request's {name}": json.dumps(value) for name, value in self.request.items()})
        content = processes.value_of_main(self._open)
        try:
            self._read(content.encode("latin-1"))
        except EvaluationError:
            self.__exit__()
            raise

    def _open(self) -> str:
        """Locks the file and returns its bytes, as a text that JSON can hold."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            content = self._lock()
            if (renewed := self._renewed(content)) != content:
                write_atomically(self.directory / ANSWERS, renewed)
                self._file.close()
                content = self._lock()
            return content.decode("latin-1")
        except BlockingIOError as error:
            raise EvaluationError(f"another process is writing into {self.directory}") from error
        except OSError as error:
            raise EvaluationError(f"--out={self.directory} cannot be used: {error.strerror}") from error

    def _lock(self) -> bytes:
        """Returns the file's bytes."""
        self._file = open(self.directory / ANSWERS, "a+b")  # noqa: SIM115 - until __exit__
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file.seek(0)
        return self._file.read()

    def _renewed(self, content: bytes) -> bytes:
        """The file's bytes with this request in front if an earlier version's form of it is there."""
        first, end, lines = content.partition(b"\n")
        own = json.dumps(self.request).encode()
        if first == own or not end or self._earlier is None:
            return content
        earlier = json.dumps(self._earlier()).encode()
        return own + end + lines if first == earlier else content

    def _read(self, content: bytes) -> None:
        whole = content[: content.rfind(b"\n") + 1]  # a kill may leave half of the last line
        try:
            before, *lines = (json.loads(line) for line in whole.splitlines() or [b"{}"])
            before = dict(before)
            if any("key" in line and "weights_id" not in line for line in map(dict, lines)):
                raise EvaluationError(
                    f"{self.directory / ANSWERS} was written by an earlier version of anchorjax, whose answers this "
                    f"version cannot read: give another --out, or move {self.directory} away; nothing in it was changed"
                )
            for line in lines:
                self._take(line)
        except (ValueError, TypeError, KeyError) as error:
            raise EvaluationError(f"{self.directory / ANSWERS} is damaged: {error!r}") from error
        changed = [name for name in {**before, **self.request} if before.get(name) != self.request.get(name)]
        if changed and self.answers:
            what = "; ".join(f"{name}: {before.get(name)!r} -> {self.request.get(name)!r}" for name in changed)
            raise EvaluationError(f"{self.directory} holds answers to another request ({what}); give another --out")
        if changed or not whole:
            self._commands = []
            self._truncate(0)
            self._append(self.request)
        else:
            self._truncate(len(whole))

    def _truncate(self, size: int) -> None:
        if self._file:
            self._file.truncate(size)

    def _take(self, line: Line) -> None:
        if "command" in line:
            self._commands.append(line)
        else:
            self.answers[line["weights_id"], line["task"], line["length"], line["index"]] = line

    @property
    def commands(self) -> list[str]:
        """Commands as they were typed, oldest first, each once."""
        return list(dict.fromkeys(line["command"] for line in self._commands))

    def begin(self, command: str, asked: Mapping[str, Any], cells: Iterable[Mapping[str, Any]]) -> None:
        """Notes a command, unless it was noted before.

        Args:
          asked: JSON; what a summary depends on beside the request: cells with the same stand side by side.
          cells: {"task", "length", "examples", and facts} of each; `examples` is a number, or a list of indices.
        """
        line = json.loads(json.dumps({"command": command, "asked": asked, "cells": list(cells)}))
        if line not in self._commands:
            self._take(line)
            self._append(line)

    def cells(self, asked: Mapping[str, Any], weights_ids: Sequence[str]) -> list[Cell]:
        """The cells of all commands that asked the same, as far as every answer is there."""
        asked = json.loads(json.dumps(asked))
        named = {
            (cell["task"], cell["length"]): cell
            for line in self._commands
            if line["asked"] == asked
            for cell in line["cells"]
        }
        found = []
        for (task, length), cell in named.items():
            examples = cell["examples"]
            indices = range(examples) if isinstance(examples, int) else examples
            keys = [[(id, task, length, index) for index in indices] for id in weights_ids]
            if all(key in self.answers for some in keys for key in some):
                facts = {name: cell[name] for name in cell if name not in ("task", "length", "examples")}
                found.append(Cell(task, length, facts, [[self.answers[key] for key in some] for some in keys]))
        return found

    def lacks(self, key: Key, id: str = "") -> bool:
        """Whether there is no answer, or one to another example of the same index."""
        return key not in self.answers or self.answers[key].get("id", "") != id

    def add(self, lines: Iterable[Line]) -> None:
        """Keeps the answers of a batch in one write: a kill leaves all of them or none.

        The batches after a kill are then those that would have come: in another batch, rounding may change an answer.
        """
        lines = list(lines)
        for line in lines:
            self._take(line)
        self._append(*lines)

    def _append(self, *lines: Mapping[str, Any]) -> None:
        if not self._file:
            return
        with self._writing():
            self._file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            self._file.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EvaluationError(
                f"{self.directory} cannot be written: {error.strerror}; run the same command to resume"
            ) from error

    def write(self, name: str, content: Mapping[str, Any] | bytes) -> Path:
        """Replaces a file of the directory in one move, on process 0. Returns its path."""
        if not self._file:
            return self.directory / name
        data = content if isinstance(content, bytes) else json.dumps(content, indent=2) + "\n"
        with self._writing():
            write_atomically(self.directory / name, data)
        return self.directory / name

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            self._file.close()
