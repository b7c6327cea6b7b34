"""One JSON object a line, as `.jsonl`, `.jsonl.gz` or `.jsonl.zst`.

A plain file is cut into parts that processes read side by side; a compressed one is read from its beginning.
At most one line is in memory at a time, and never more than `data.max_row_bytes` of it.
"""

import dataclasses
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from anchorjax.data.documents import MARK, BadRow, Document, Fields, decode
from anchorjax.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst")
PART_BYTES = 2**28  # of plain files: the same for any number of processes, so that the store is too
_READ_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Lines:
    """The lines of a file that begin at bytes `begin` to `end` - 1 (of a compressed file, all of them)."""

    file: Path
    begin: int
    end: int | None

    def read(self, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
        """Yields (number, line) of every line that is not blank; None for a line of more than `max_bytes`.

        Numbers count from 1 at `begin`; `place` converts them to those of the file. A byte order mark at the beginning
        of the file is removed.

        Raises:
          DataError: the file cannot be read, or is compressed and damaged.
        """
        try:
            with _open(self.file) as stream:
                yield from self._read(stream, max_bytes)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.file} cannot be read: {error}") from error

    def _read(self, stream: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
        at = self.begin
        if at:  # a line that begins before belongs to another part
            stream.seek(at - 1)
            at += _skip_line(stream) - 1
        number = 0
        mark = len(stream.read(len(MARK))) if not at and stream.peek(len(MARK)).startswith(MARK) else 0
        while self.end is None or at < self.end:
            line = stream.readline(max_bytes + 2)  # with the line's end
            if not line:
                return
            number += 1
            at += mark + len(line)
            mark = 0
            if not line.endswith(b"\n") and len(line) > max_bytes:
                at += _skip_line(stream)
                yield number, None
            elif not line.isspace():
                yield number, line

    def is_marked(self) -> bool:
        """Returns whether the first of these lines begins with a byte order mark."""
        if self.begin:
            return False
        with _open(self.file) as stream:
            return stream.read(len(MARK)) == MARK

    def place(self, number: int) -> str:
        """Returns "FILE:LINE". It counts the lines before `begin`, which may be slow."""
        with open(self.file, "rb") as stream:
            left = self.begin
            block = b"\n"
            while left and (block := stream.read(min(left, _READ_BYTES))):
                left -= len(block)
                number += block.count(b"\n")
        number += not block.endswith(b"\n")  # the line that `begin` cuts
        return f"{self.file}:{number}"


def _open(file: Path) -> BinaryIO:
    if file.suffix.lower() == ".gz":
        return gzip.open(file, "rb")
    if file.suffix.lower() == ".zst":
        import pyarrow  # its decompressor reads files of several frames, and only these files need it

        return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"), _READ_BYTES)
    return open(file, "rb", buffering=_READ_BYTES)


def _skip_line(stream: BinaryIO) -> int:
    """Reads to the end of the line; returns the number of bytes read."""
    skipped = 0
    while piece := stream.readline(_READ_BYTES):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _refuse_constant(name: str) -> None:
    raise BadRow(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)  # Python's default accepts NaN and Infinity


def parse(line: bytes):
    """Parses a line. Raises BadRow."""
    if b"\0" in line:
        raise BadRow("a NUL byte")
    if line.startswith(MARK):
        raise BadRow("begins with a byte order mark")
    try:
        return _DECODER.decode(decode(line)[0])
    except RecursionError as error:
        raise BadRow("nested too deeply") from error
    except ValueError as error:  # a number of too many digits is one, too
        raise BadRow("not JSON") from error


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """A shard: some lines of a file, each an object with a text or a conversation."""

    lines: Lines
    fields: Fields
    split: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.lines.file,)

    @property
    def name(self) -> str:
        return f"{self.lines.file}@{self.lines.begin}"

    def rows(self) -> Iterator[tuple[int, Document | BadRow]]:
        for at, (number, value) in enumerate(values(self.lines, self.fields.max_bytes)):
            yield number, self.fields.document(value, not at and self.lines.is_marked())

    def place(self, number: int) -> str:
        return self.lines.place(number)


def values(lines: Lines, max_bytes: int) -> Iterator[tuple[int, object]]:
    """Yields (number, JSON value or BadRow) of every line."""
    for number, line in lines.read(max_bytes):
        try:
            value = parse(line) if line is not None else BadRow(f"longer than data.max_row_bytes={max_bytes}")
        except BadRow as error:
            value = error
        yield number, value


def parts(file: Path) -> list[Lines]:
    """Returns the parts of a file. Raises DataError if it cannot be read."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    if file.suffix.lower() in (".gz", ".zst"):
        if not size:  # not even the compressed form of nothing
            raise DataError(f"{file} cannot be read: it is empty")
        return [Lines(file, 0, None)]
    return [Lines(file, begin, min(begin + PART_BYTES, size)) for begin in range(0, size, PART_BYTES)]


def shards(files: list[Path], fields: Fields) -> list[JsonLines]:
    return [JsonLines(part, fields) for file in files for part in parts(file)]
