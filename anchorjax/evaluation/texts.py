"""Documents to score: those of files, or the held-out ones of the text that ships.

Of each length the same documents are taken for every model with the same tokenizer: in an order drawn from the seed and
their texts, the first that are long enough, cut to the length.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anchorjax.data import sources
from anchorjax.data.documents import BadRow, Document, Fields, Shard
from anchorjax.data.sources import public_domain
from anchorjax.data.text import text_file
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import DataError, EvaluationError, UsageError

SHIPPED = "public_domain"
_MAX_ROW_BYTES = 2**30


def read(text: str, text_key: str = "text") -> list[str]:
    """All documents of `text`: a file, a folder or a pattern, "KIND:PATH" as in `data.source`, or "public_domain".

    Raises:
      UsageError: there is no such file, or it is not clear how to read it.
      DataError: a file that cannot be read, or a row of it that holds no text.
    """
    if text == SHIPPED:
        return [document["text"] for _, document in public_domain.read(held_out=True)]
    kind, path = _parts(text)
    try:
        kind = kind or sources.kind_of(path)
        fields = Fields(text_key, "source", "documents", _MAX_ROW_BYTES, "--text-key")
        shards = sources.of_files(kind, path, fields)
    except ValueError as error:
        raise UsageError(f"--text: {error}") from error
    documents = [_checked(shard, number, row) for shard in shards for number, row in shard.rows()]
    text_file.say_marks(f"--text={text}", sum(document.marked for document in documents))
    return [document.content for document in documents]


def _parts(text: str) -> tuple[str, str]:
    """(kind, path) of "KIND:PATH"; the kind is empty where none is named."""
    kind, colon, path = text.partition(":")
    return (kind, path) if colon and kind in sources.TEXT_KINDS else ("", text)


def absolute(text: str) -> str:
    """`text` for records, which outlive the directory that a command was given in."""
    if text == SHIPPED:
        return text
    kind, path = _parts(text)
    return f"{kind}{':' if kind else ''}{Path(path).expanduser().resolve()}"


def _checked(shard: Shard, number: int, row: Document | BadRow) -> Document:
    if isinstance(row, BadRow):
        raise DataError(f"{shard.place(number)}: {row}{f' ({row.detail})' if row.detail else ''}")
    return row


def digest(content: str | np.ndarray) -> str:
    """Tells documents (or their tokens) apart, in the keys of answers."""
    data = content.encode() if isinstance(content, str) else content.astype("<i4").tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """A document that is long enough.

    Attributes:
      text: all of it.
      ids_T: int32 [T], its first tokens, without specials.
    """

    text: str
    ids_T: np.ndarray


class Documents:
    """Texts in the order of a seed, with their tokens as far as these are asked for."""

    def __init__(self, name: str, texts: Sequence[str], tokenizer: Tokenizer, seed: int):
        """`name`: what messages call them."""
        self.name = name
        self._texts = sorted(texts, key=lambda text: Document(text, "").draw(digest(str(seed))))
        self._encode = functools.cache(lambda index: tokenizer.encode(self._texts[index]))  # for several lengths

    def choose(self, length: int, samples: int, shortest: int | None = None) -> tuple[list[Chosen], int]:
        """(the first `samples` documents of at least `shortest` tokens, cut to `length`; how many were too short).

        Both count BOS, which `ids_T` does not have: it holds `length - 1` tokens. `shortest` is
        `length` unless given.

        Raises:
          EvaluationError: no document is long enough.
        """
        wanted = length if shortest is None else shortest
        found: list[Chosen] = []
        short = [0]
        for index, text in enumerate(self._texts):
            if len(found) == samples:
                break
            ids = self._encode(index)
            if len(ids) + 1 >= wanted:
                found.append(Chosen(text, ids[: length - 1]))
            else:
                short.append(len(ids) + 1)
        if not found:
            longer = ", which is all that ships: name longer documents with --text" if self.name == SHIPPED else ""
            raise EvaluationError(
                f"none of the {len(self._texts):,} documents of {self.name} has {wanted:,} tokens; the longest has "
                f"{max(short):,}, BOS included{longer}"
            )
        return found, len(short) - 1
