"""Text files, one document each; the source is the name of the file's folder."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from anchorjax.data.documents import BadRow, Document, Fields, decode
from anchorjax.errors import DataError

SUFFIXES = (".txt", ".md")
PART_FILES = 1024  # the same for any number of processes


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """A shard: a list of files."""

    files: tuple[Path, ...]
    fields: Fields
    split: str | None = None

    @property
    def name(self) -> str:
        return str(self.files[0])

    def rows(self) -> Iterator[tuple[int, Document | BadRow]]:
        for number, file in enumerate(self.files):
            try:
                text, marked = decode(self._read(file))
                yield number, Document(self.fields.check(text), file.parent.name, marked)
            except BadRow as error:
                yield number, error

    def _read(self, file: Path) -> bytes:
        try:
            if file.stat().st_size > self.fields.max_bytes:
                raise BadRow(f"longer than data.max_row_bytes={self.fields.max_bytes}")
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error

    def place(self, number: int) -> str:
        return f"{self.files[number]}:1"


def shards(files: list[Path], fields: Fields) -> list[TextFiles]:
    fields = dataclasses.replace(fields, text="the file")  # the name in messages
    return [TextFiles(tuple(files[i : i + PART_FILES]), fields) for i in range(0, len(files), PART_FILES)]
