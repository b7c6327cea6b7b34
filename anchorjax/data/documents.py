"""Documents on their way into a store, and the reasons why a row of an input is bad.

Shards yield `(number, document or BadRow)` in the order of their files. A bad row is an exception that is yielded
instead of raised, because `data.bad_rows` decides what happens.
"""

import dataclasses
import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from anchorjax.data.bad_rows import BadRow, utf8
from anchorjax.data.conversations import Conversation

MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark, which readers remove (RFC 8259; Unicode 23.8)
_KEYS_SHOWN = 8
_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, the ids of one that was tokenized elsewhere, or a conversation; and the name of its source.

    Attributes:
      marked: its file began with a byte order mark, which was removed.
      lacks: why its row has no source ("meta.name is missing or null"); "" if it has one or needs none.
    """

    content: str | np.ndarray | Conversation
    source: str
    marked: bool = dataclasses.field(default=False, compare=False)
    lacks: str = dataclasses.field(default="", compare=False)

    def __post_init__(self):
        """Raises BadRow if the source's name cannot be encoded as UTF-8."""
        utf8(self.source, "the name of the source")

    def draw(self, purpose: str) -> float:
        """Returns a number in [0, 1) that depends on the content and the purpose only, so that copies share it."""
        is_ids = isinstance(self.content, np.ndarray)
        content = self.content.astype("<i4").tobytes() if is_ids else self.content.encode()
        digest = hashlib.blake2b(content, digest_size=8, person=purpose.encode()).digest()
        return int.from_bytes(digest, "little") / 2**64


class Shard(Protocol):
    """A piece of a source that one process reads, from its first row to its last: a frozen dataclass.

    Attributes:
      name: the same in every run, and of no other shard.
      files: its input files; a change of one makes it another shard.
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
        """Returns the place of row `number` for a message, such as "books.jsonl:17". May be slow."""
        ...


@dataclasses.dataclass(frozen=True)
class Fields:
    """The keys of a row's text or conversation and of its source, and the largest size of a row.

    "meta.name" is the column or key of that whole name, or else the key "name" in the object "meta".
    `text_option` is what messages call the option that says where the text is. With `is_conversation`, `text` is the
    key of a list of messages.
    """

    text: str
    source: str
    default_source: str
    max_bytes: int
    text_option: str = "data.text_key"
    is_conversation: bool = False

    def document(self, row: Any, marked: bool = False) -> Document | BadRow:
        """Returns the document of a row, or a BadRow. `marked`: see `Document`."""
        try:
            if isinstance(row, BadRow):
                return row
            if not isinstance(row, Mapping):
                raise BadRow("not an object")
            source, text = find(row, self.source), find(row, self.text)
            if self.is_conversation:
                if text is None:
                    raise BadRow(f"{self.text} is missing or null", self._help(row))
                content = Conversation.of(text, self.text, self.max_bytes)
            else:
                content, marked = self._text(row, text, marked)
            if isinstance(source, bytes):
                source, _ = decode(source)
            if isinstance(source, str):
                return Document(content, source, marked)
            lacks = f"{self.source} is {'missing or null' if source is None else 'not a string'}"
            return Document(content, self.default_source, marked, lacks)
        except BadRow as error:
            return error

    def _text(self, row: Mapping[str, Any], text: Any, marked: bool) -> tuple[str, bool]:
        """Returns the text, and whether it is marked."""
        if isinstance(text, bytes):  # a column of bytes
            text, has_mark = decode(text)
            marked |= has_mark
        if text is None:
            raise BadRow(f"{self.text} is missing or null", self._help(row))
        return self.check(text), marked

    def _help(self, row: Mapping[str, Any]) -> str:
        if find(row, self.text, _MISSING) is None:
            return ""  # it is null
        return f"{self.text_option}={self.text!r} names nothing in the row, which has {listed(self.text, _keys(row))}"

    def check(self, text: Any) -> str:
        """Returns `text`. Raises BadRow if it is empty, too long, or no text that a tokenizer accepts."""
        if not isinstance(text, str):
            raise BadRow(f"{self.text} is not a string")
        if not text or text.isspace():
            raise BadRow(f"{self.text} is empty")
        if "\0" in text:
            raise BadRow(f"{self.text} holds a NUL character")
        if len(utf8(text, self.text)) > self.max_bytes:
            raise BadRow(f"longer than data.max_row_bytes={self.max_bytes}")
        return text


def _keys(row: Mapping[str, Any], depth: int = 2) -> list[str]:
    """Returns the keys of a row, and the keys of its nested objects as paths."""
    keys = []
    for key, value in row.items():
        keys.append(str(key))
        if isinstance(value, Mapping) and depth > 1:
            keys += [f"{key}.{inner}" for inner in _keys(value, depth - 1)]
    return keys


def listed(wanted: str, names: Sequence[str]) -> str:
    """Lists names for a message with a suggestion: "title, Text; did you mean 'Text'?"."""
    if not names:
        return "no keys"
    shown = ", ".join(names[:_KEYS_SHOWN]) + (", ..." if len(names) > _KEYS_SHOWN else "")
    last = wanted.lower().rpartition(".")[2]
    same = [name for name in names if name.lower().rpartition(".")[2] == last]
    close = same or difflib.get_close_matches(wanted, names, 1)
    return f"{shown}; did you mean {close[0]!r}?" if close else shown


def find(row: Mapping[str, Any], path: str, missing: Any = None) -> Any:
    """Returns the value at "meta.name", or `missing`: the key of that whole name, or else "name" inside "meta"."""
    if path in row:
        return row[path]
    for head, rest in _cuts(path):
        if isinstance(row.get(head), Mapping):
            return find(row[head], rest, missing)
    return missing


def _cuts(path: str) -> Iterator[tuple[str, str]]:
    """(head, rest) at each dot, the longest head first."""
    parts = path.split(".")
    for at in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:at]), ".".join(parts[at:])


def column(path: str, names: Sequence[str]) -> str | None:
    """Returns the column of a table that a path begins with, or None."""
    return next((head for head in (path, *(head for head, _ in _cuts(path))) if head in names), None)


def decode(data: bytes) -> tuple[str, bool]:
    """Returns (the UTF-8 text of a file, whether it began with a byte order mark, which is removed). Raises BadRow."""
    try:
        return data.removeprefix(MARK).decode("utf-8"), data.startswith(MARK)
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8") from error
