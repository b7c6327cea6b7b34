"""A document on its way into a store, and what makes a row of an input a bad one.

Shards yield `(number, document or BadRow)` in the order of their files. A bad row is an exception that is handed on
instead of raised: `data.bad_rows` decides.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class BadRow(Exception):
    """A row that holds no document; the message is the reason, without details, so that reasons can be counted."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, or the ids of one that was tokenized elsewhere, and the name of its source."""

    content: str | np.ndarray
    source: str

    def __post_init__(self):
        """Raises BadRow: no file takes the name of the source."""
        utf8(self.source, "the name of the source")

    def draw(self, purpose: str) -> float:
        """A number in [0, 1) that depends on the content and the purpose only, so copies of a text share it."""
        content = self.content.encode() if isinstance(self.content, str) else self.content.astype("<i4").tobytes()
        digest = hashlib.blake2b(content, digest_size=8, person=purpose.encode()).digest()
        return int.from_bytes(digest, "little") / 2**64


class Shard(Protocol):
    """A piece of a source that one process reads, from its first row to its last.

    Attributes:
      name: the same in every run, and of no other shard.
      files: whose change makes it another shard.
      split: "train" or "validation" if the source has splits; None if documents are held out by `Document.draw`.
    """

    @property
    def name(self) -> str: ...
    @property
    def files(self) -> tuple[Path, ...]: ...
    @property
    def split(self) -> str | None: ...

    def rows(self) -> Iterator[tuple[int, Document | BadRow]]:
        """Raises DataError if the file cannot be read, or ends too early."""
        ...

    def place(self, number: int) -> str:
        """Where row `number` is, for a message: "books.jsonl:17". May be slow."""
        ...


@dataclasses.dataclass(frozen=True)
class Fields:
    """Where a row has its text and its source (dots lead into objects), and how large it may be."""

    text: str
    source: str
    default_source: str
    max_bytes: int

    def document(self, row: Any) -> Document | BadRow:
        """The document of a row; a BadRow stays one."""
        try:
            if isinstance(row, BadRow):
                return row
            if not isinstance(row, Mapping):
                raise BadRow("not an object")
            source = find(row, self.source)
            text = self.check(find(row, self.text))
            return Document(text, source if isinstance(source, str) else self.default_source)
        except BadRow as error:
            return error

    def check(self, text: Any) -> str:
        """`text` itself. Raises BadRow unless it is one that a tokenizer can take."""
        if text is None:
            raise BadRow(f"{self.text} is missing or null")
        if not isinstance(text, str):
            raise BadRow(f"{self.text} is not a string")
        if not text or text.isspace():
            raise BadRow(f"{self.text} is empty")
        if "\0" in text:
            raise BadRow(f"{self.text} holds a NUL character")
        if len(utf8(text, self.text)) > self.max_bytes:
            raise BadRow(f"longer than data.max_row_bytes={self.max_bytes}")
        return text


def utf8(text: str, key: str) -> bytes:
    """Raises BadRow: JSON can write half of a surrogate pair, which no file and no tokenizer takes."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{key} holds a lone surrogate") from error


def find(row: Mapping[str, Any], path: str) -> Any:
    """What lies at a path such as "meta.name", or None."""
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def decode(data: bytes) -> str:
    """UTF-8. Raises BadRow."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise BadRow("a byte order mark in front")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8") from error
