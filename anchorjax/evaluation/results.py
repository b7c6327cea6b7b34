"""Answers of an evaluation on disk, one line each as they come: what is there is not asked again after a kill.

answers.jsonl   the first line is the request, all others {"key": ..., and what was found}
NAME.json       a result, written whole; NAME.png beside it
"""

import contextlib
import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anchorjax.errors import EvaluationError
from anchorjax.files import write_atomically

ANSWERS = "answers.jsonl"


class Results:
    """A directory of one evaluation. Use as a context manager: no other process may write into it meanwhile."""

    def __init__(self, directory: Path, request: Mapping[str, Any]):
        """
        Args:
          request: all that the answers depend on; JSON.

        Raises:
          EvaluationError: the directory holds answers to another request, is in use, or cannot be written.
        """
        self.directory, self._request = directory, json.loads(json.dumps(request))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = open(directory / ANSWERS, "a+b")  # noqa: SIM115 - until __exit__
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EvaluationError(f"another process is writing into {directory}") from error
        except OSError as error:
            raise EvaluationError(f"--out={directory} cannot be used: {error.strerror}") from error
        self.answers: dict[str, dict[str, Any]] = {}
        try:
            self._read()
        except EvaluationError:
            self._file.close()
            raise

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]  # a kill may leave half of the last line
        lines = whole.splitlines()
        if not lines:
            self._file.truncate(0)
            self._append(self._request)
            return
        try:
            before, *answers = (json.loads(line) for line in lines)
            before = dict(before)
            self.answers = {answer["key"]: answer for answer in answers}
        except (ValueError, TypeError, KeyError) as error:
            raise EvaluationError(f"{self.directory / ANSWERS} is damaged: {error}") from error
        changed = [name for name in {**before, **self._request} if before.get(name) != self._request.get(name)]
        if changed and not self.answers:
            self._file.truncate(0)
            self._append(self._request)
            return
        if changed:
            what = "; ".join(f"{name}: {before.get(name)!r} -> {self._request.get(name)!r}" for name in changed)
            raise EvaluationError(f"{self.directory} holds answers to another request ({what}); give another --out")
        self._file.truncate(len(whole))

    def add(self, key: str, **found: Any) -> None:
        self.add_all({key: found})

    def add_all(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps the answers of a batch in one write; those that are there stay.

        A kill leaves all of them or none, and the batches behind it those that would have come: in other company a row
        may come out otherwise, by what rounding makes of it.
        """
        lines = {key: {"key": key, **answer} for key, answer in found.items() if key not in self.answers}
        self.answers |= lines
        self._append(*lines.values())

    def missing(self, keys: Iterable[str]) -> list[str]:
        return [key for key in keys if key not in self.answers]

    def _append(self, *lines: Mapping[str, Any]) -> None:
        with self._writing():
            self._file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            self._file.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EvaluationError(
                f"{self.directory} cannot be written: {error.strerror}; run again to go on"
            ) from error

    def write(self, name: str, content: Mapping[str, Any] | bytes) -> Path:
        """Replaces a file of the directory in one move."""
        data = content if isinstance(content, bytes) else json.dumps(content, indent=2) + "\n"
        with self._writing():
            write_atomically(self.directory / name, data)
        return self.directory / name

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
