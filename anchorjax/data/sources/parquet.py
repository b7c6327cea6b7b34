"""Parquet files, and Arrow files as Hugging Face `datasets` saves them, with a column of texts."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from anchorjax.data import saved_dataset
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
        return {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except UnicodeDecodeError:  # Arrow takes the writer's word for it
        return BadRow("not UTF-8")
    except ValueError as error:
        return BadRow(f"an object that cannot be read ({error})")


def shards(files: list[Path], fields: Fields) -> list[TableTexts]:
    """Raises DataError for what `tables.parts` and `saved_dataset.splits` refuse."""
    splits = saved_dataset.splits(files)
    return [
        TableTexts(part, fields, splits.get(file))
        for file in files
        for part in tables.parts(file, [fields.text], [fields.source], fields.text_option)
    ]
