"""Parquet files, and Arrow files as Hugging Face `datasets` saves them, with a column of texts or conversations."""

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
        for number, batch, row in self.table.read((self.fields.text, self.fields.source)):
            yield number, self.fields.document(_values(batch, row))

    def place(self, number: int) -> str:
        return self.table.place(number)


def _values(batch, row: int) -> dict | BadRow:
    try:
        return {name: tables.value(batch.column(name)[row]) for name in batch.schema.names}
    except BadRow as error:
        return error


def shards(files: list[Path], fields: Fields) -> list[TableTexts]:
    """Raises DataError for what `tables.parts` refuses."""
    return [
        TableTexts(part, fields)
        for file in files
        for part in tables.parts(file, [fields.text], [fields.source], fields.text_option)
    ]
