"""Rows of Arrow tables in files: `.parquet`, and `.arrow` as Hugging Face `datasets` saves them.

A file is cut between its row groups (of Parquet) or record batches (of Arrow) into parts that processes read side by
side.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from anchorjax.data.documents import BadRow, column, listed
from anchorjax.errors import DataError

SUFFIXES = (".parquet", ".arrow")
PART_ROWS = 2**16  # at least so many: the same for any number of processes
_AT_ONCE = 64  # rows; a row may be a whole book


@dataclasses.dataclass(frozen=True)
class TableRows:
    """Groups of rows of a file; `begin` is the number of the first row in it."""

    file: Path
    groups: tuple[int, ...]
    begin: int

    def read(self, paths: Sequence[str]) -> Iterator[tuple[int, pyarrow.RecordBatch, int]]:
        """Yields (number, batch, row in the batch) of every row, with the existing columns that the paths begin with.

        Raises:
          DataError: the file cannot be read.
        """
        with _opened(self.file) as table:
            number = self.begin
            for batch in table.batches(self.groups, _columns(paths, table.names)):
                for row in range(batch.num_rows):
                    yield number + row, batch, row
                number += batch.num_rows

    def place(self, number: int) -> str:
        return f"{self.file}:{number}"


class _Parquet:
    def __init__(self, file: Path):
        self._table = pyarrow.parquet.ParquetFile(file)
        self.names = self._table.schema_arrow.names
        groups = range(self._table.num_row_groups)
        self.group_rows = [self._table.metadata.row_group(group).num_rows for group in groups]

    def batches(self, groups: Sequence[int], columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        # Without threads: more than one process reads.
        return self._table.iter_batches(_AT_ONCE, row_groups=list(groups), columns=list(columns), use_threads=False)

    def close(self) -> None:
        self._table.close()


class _Arrow:
    def __init__(self, file: Path):
        self._stream = pyarrow.memory_map(str(file))
        try:  # `datasets` writes the streaming format; others call a file with an index .arrow, too
            reader = pyarrow.ipc.open_stream(self._stream)
            self._batches = list(reader)
        except pyarrow.ArrowInvalid:
            self._stream.seek(0)
            reader = pyarrow.ipc.open_file(self._stream)
            self._batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self.names = reader.schema.names
        self.group_rows = [batch.num_rows for batch in self._batches]

    def batches(self, groups: Sequence[int], columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        for group in groups:
            yield self._batches[group].select(list(columns))

    def close(self) -> None:
        self._stream.close()


def integers(scalar: pyarrow.Scalar) -> Any:
    """Returns a list of integers as an array, in a hundredth of the time of a list; other values as `value` does."""
    is_list = isinstance(scalar, pyarrow.ListScalar) and pyarrow.types.is_integer(scalar.type.value_type)
    return scalar.values.to_numpy(zero_copy_only=False) if is_list and scalar.is_valid else value(scalar)


def value(scalar: pyarrow.Scalar) -> Any:
    """Returns the value of a cell. Raises BadRow."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:  # Arrow does not check it
        raise BadRow("not UTF-8") from error
    except ValueError as error:  # two fields of a name
        raise BadRow(f"an object that cannot be read ({error})") from error


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[_Parquet | _Arrow]:
    try:
        with contextlib.closing(_Arrow(file) if file.suffix.lower() == ".arrow" else _Parquet(file)) as table:
            yield table
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


def _columns(paths: Sequence[str], names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for path in paths if (name := column(path, names))))


def parts(file: Path, needed: Sequence[str], optional: Sequence[str] = (), option: str = "") -> list[TableRows]:
    """Cuts a file into parts.

    Args:
      needed, optional: paths that begin with a column's name; see `documents.find`.
      option: the name of the option that gave the first of them, for messages.

    Raises:
      DataError: the file cannot be read, lacks a needed column, or has two columns of a requested name.
    """
    with _opened(file) as table:
        names, group_rows = table.names, table.group_rows
    for path in needed:
        if column(path, names) is None:
            said = f" ({option}={path!r})" if option else ""
            raise DataError(f"{file} has no column {path!r}, only {listed(path, names)}{said}")
    for name in _columns([*needed, *optional], names):
        if names.count(name) > 1:
            raise DataError(f"{file} has {names.count(name)} columns named {name!r}; rename all but one")
    found, groups, begin, at = [], [], 0, 0
    for group, rows in enumerate(group_rows):
        groups.append(group)
        at += rows
        if at - begin >= PART_ROWS or group == len(group_rows) - 1:
            found.append(TableRows(file, tuple(groups), begin))
            groups, begin = [], at
    return found
