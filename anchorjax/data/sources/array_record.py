"""ArrayRecord files whose records are UTF-8 texts, or JSON objects with one (a record that begins with "{")."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

from anchorjax.data.documents import MARK, BadRow, Document, Fields, decode
from anchorjax.data.sources import jsonl
from anchorjax.errors import DataError

SUFFIXES = (".array_record", ".arrayrecord")
PART_RECORDS = 2**16  # the same for any number of processes
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Records:
    """A shard: records begin to end - 1 of a file."""

    file: Path
    begin: int
    end: int
    fields: Fields
    split: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    @property
    def name(self) -> str:
        return f"{self.file}@{self.begin}"

    def rows(self) -> Iterator[tuple[int, Document | BadRow]]:
        with _opened(self.file) as reader:
            for first in range(self.begin, self.end, _AT_ONCE):
                records = reader.read(first, min(first + _AT_ONCE, self.end))
                for number, record in enumerate(records, first):
                    yield number, self._document(record)

    def _document(self, record: bytes) -> Document | BadRow:
        """Decodes a record; a byte order mark at its beginning is removed."""
        try:
            if len(record) > self.fields.max_bytes:
                raise BadRow(f"longer than data.max_row_bytes={self.fields.max_bytes}")
            content = record.removeprefix(MARK)
            if content.lstrip().startswith(b"{"):
                return self.fields.document(jsonl.parse(content), record.startswith(MARK))
            text, marked = decode(record)
            return Document(self.fields.check(text), self.fields.default_source, marked)
        except BadRow as error:
            return error

    def place(self, number: int) -> str:
        return f"{self.file}:{number}"


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[ArrayRecordReader]:
    try:
        with contextlib.closing(ArrayRecordReader(str(file), "readahead_buffer_size:0")) as reader:
            yield reader
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def shards(files: list[Path], fields: Fields) -> list[Records]:
    """Raises DataError for a file that cannot be read."""
    found = []
    for file in files:
        with _opened(file) as reader:
            count = reader.num_records()
        ranges = range(0, count, PART_RECORDS)
        found += [Records(file, begin, min(begin + PART_RECORDS, count), fields) for begin in ranges]
    return found
