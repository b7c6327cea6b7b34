"""One part of benchmarks/gpu.py: what it was asked, and its records, each on disk before the next is measured.

A record is one JSON line: {"part": ..., "what": ..., ...}. A fault becomes a record too ("failed": why), or "skipped":
why, and the part goes on with what it can still measure.
"""

import argparse
import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("ceilings", "contract", "attention", "training", "evaluation")  # in the order in which they are run


class Unavailable(Exception):
    """What is asked for is not on this machine; the message says why."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part as it was asked for.

    Attributes:
      file: of the records of all parts.
      dry_run: tiny sizes on a CPU, kernels interpreted.
    """

    name: str
    file: Path
    dry_run: bool

    @classmethod
    def asked(cls, name: str) -> "Part":
        """From the command line that benchmarks/gpu.py starts it with."""
        parser = argparse.ArgumentParser(prog=name)
        parser.add_argument("--file", type=Path, required=True)
        parser.add_argument("--dry-run", action="store_true")
        given = parser.parse_args()
        return cls(name, given.file, given.dry_run)

    def add(self, what: str, **fields: Any) -> None:
        """Writes one record, and prints it."""
        write(self.file, {"part": self.name, "what": what, **fields})
        shown = "  ".join(f"{key} {_short(value)}" for key, value in fields.items() if value is not None)
        print(f"{self.name:<10} {what:<12} {shown}", flush=True)

    @contextlib.contextmanager
    def guard(self, what: str, **fields: Any) -> Iterator[None]:
        """A fault inside is recorded, and not raised."""
        try:
            yield
        except Unavailable as error:
            self.add(what, **fields, skipped=str(error))
        except Exception as error:
            self.add(what, **fields, failed=told(error))


def told(error: Exception) -> str:
    """In one line of at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)}"[:300]


def write(file: Path, record: dict[str, Any]) -> None:
    """Appends one line; it is on disk when this returns."""
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def read(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of each part's last run. A line that was cut by a kill is left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in file.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["what"] == "began":
            found[record["part"]] = []
        found.setdefault(record["part"], []).append(record)
    return found


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:300]
