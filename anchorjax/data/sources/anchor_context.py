"""Packed and tokenized rows of AnchorContext and Long-Context-Data-Engineering, split into documents again.

A row holds `input_ids` of several documents and their spans, `source`: [{"source": "Books", "start": 0, "end": 731},
...], or the same as three lists. The ids must be of `data.tokenizer`. BOS before and EOS after a
document are removed, because a store adds its own. A document that was cut at the end of a row stays cut.
Files: `.parquet`, `.arrow` (Hugging Face `datasets`), `.jsonl`, `.jsonl.gz`, `.jsonl.zst`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anchorjax.data.documents import BadRow, Document, Fields, decode
from anchorjax.data.files import ends_with
from anchorjax.data.sources import jsonl, tables

SUFFIXES = (*tables.SUFFIXES, *jsonl.SUFFIXES)
_IDS, _SPANS = "input_ids", "source"


@dataclasses.dataclass(frozen=True)
class PackedDocuments:
    """A shard: some rows of a file."""

    part: tables.TableRows | jsonl.Lines
    fields: Fields
    split: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.part.file,)

    @property
    def name(self) -> str:
        return f"{self.part.file}@{self.part.begin}"

    def rows(self) -> Iterator[tuple[int, Document | BadRow]]:
        """Yields documents; all documents of a row have its number. A row with any error is one bad row."""
        for at, (number, value) in enumerate(self._values()):
            try:
                yield from ((number, document) for document in _documents(value, not at and self._is_marked()))
            except BadRow as error:
                yield number, error

    def _values(self) -> Iterator[tuple[int, Any]]:
        if isinstance(self.part, jsonl.Lines):
            yield from jsonl.values(self.part, self.fields.max_bytes)
            return
        for number, batch, row in self.part.read((_IDS, _SPANS)):
            try:
                ids, spans = (batch.column(name)[row] for name in (_IDS, _SPANS))
                yield number, {_IDS: tables.integers(ids), _SPANS: tables.value(spans)}
            except BadRow as error:
                yield number, error

    def _is_marked(self) -> bool:
        return isinstance(self.part, jsonl.Lines) and self.part.is_marked()

    def place(self, number: int) -> str:
        return self.part.place(number)


def _documents(row: Any, marked: bool = False) -> list[Document]:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise BadRow("not an object")
    ids, spans = _ids(row.get(_IDS)), _spans(row.get(_SPANS))
    at = 0
    for _, start, end in spans:
        if type(start) is not int or type(end) is not int or start != at or end <= start:
            raise BadRow(f"the spans in {_SPANS} do not lie end to end")
        at = end
    if at != len(ids):
        raise BadRow(f"the spans in {_SPANS} do not cover {_IDS}")
    return [Document(ids[start:end], name, marked and not start) for name, start, end in spans]


def _ids(value: Any) -> np.ndarray:
    if not isinstance(value, list | np.ndarray) or len(value) == 0:
        raise BadRow(f"{_IDS} is missing or empty")
    try:
        ids = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise BadRow(f"{_IDS} is not a list of integers") from error
    if ids.dtype.kind not in "iu" or ids.ndim != 1 or ids.min() < 0 or ids.max() >= 2**31:
        raise BadRow(f"{_IDS} is not a list of ids")
    return ids.astype(np.int32)


def _spans(value: Any) -> list[tuple[str, int, int]]:
    keys = ("source", "start", "end")
    if isinstance(value, Mapping):  # three lists
        columns = [value.get(key) for key in keys]
        if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            raise BadRow(f"{_SPANS} is not a list of spans")
        value = [dict(zip(keys, span, strict=True)) for span in zip(*columns, strict=True)]
    if not isinstance(value, list) or not all(isinstance(span, Mapping) for span in value):
        raise BadRow(f"{_SPANS} is not a list of spans")
    spans = [(_name(span.get("source")), span.get("start"), span.get("end")) for span in value]
    if not all(isinstance(name, str) for name, *_ in spans):
        raise BadRow(f"a span in {_SPANS} has no source")
    return spans


def _name(source: Any) -> Any:
    return decode(source)[0] if isinstance(source, bytes) else source


def shards(files: list[Path], fields: Fields) -> list[PackedDocuments]:
    """Raises DataError for what `tables.parts` refuses."""
    found = []
    for file in files:
        is_table = ends_with(file.name, tables.SUFFIXES)
        cut = tables.parts(file, (_IDS, _SPANS)) if is_table else jsonl.parts(file)
        found += [PackedDocuments(part, fields) for part in cut]
    return found
