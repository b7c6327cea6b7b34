"""Parquet files, and Arrow files as Hugging Face `datasets` saves them, with a column of texts."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from anchorjax.data.documents import BadRow, Document, Fields
from anchorjax.data.sources import tables
from anchorjax.data.sources.tables import SUFFIXES, TableRows

__all__ = ["SUFFIXES", "TableTexts", "shards"]


@dataclasses.dataclass(frozen=True)
class TableTexts:
    """A shard: a range of a file's rows."""

    table: TableRows
    fields: Fields
    split: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.table.file,)

    @property
    def name(self) -> str:
        return f"{self.table.file}@{self.table.begin}"

    def rows(self) -> Iterator[tuple[int, Document | BadRow]]:
        for number, batch, row in self.table.read(_columns(self.fields)):
            yield number, self.fields.document(_values(batch, row))

    def place(self, number: int) -> str:
        return self.table.place(number)


def _columns(fields: Fields) -> list[str]:
    return list(dict.fromkeys(path.split(".")[0] for path in (fields.text, fields.source)))


def _values(batch, row: int) -> dict | BadRow:
    try:
        return {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except UnicodeDecodeError:  # Arrow takes the writer's word for it
        return BadRow("not UTF-8")


def shards(files: list[Path], fields: Fields) -> list[TableTexts]:
    """Raises DataError for a file that cannot be read, or without the column of texts."""
    text = fields.text.split(".")[0]
    return [TableTexts(part, fields) for file in files for part in tables.parts(file, [text])]
