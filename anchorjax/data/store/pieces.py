"""Tokenizes one shard of a source into a piece of each split: the work of one process of a preparation.

Piece 3 is `00003.json`, which is written last and so marks the piece as complete, and for each split three arrays
without headers: `00003.train.tokens`, `.lengths` (int64) and `.sources` (int32, indices of the piece's own names).
Pieces of conversations have a fourth one, `.trained` (one byte a token).
Each attempt at a piece writes into a directory of its own, from which whole files are renamed: runners may try a piece
twice at once, and every attempt has the same bytes. Only a few documents of a shard are in memory.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anchorjax.config import DataConfig
from anchorjax.data.bad_rows import BadRow
from anchorjax.data.conversations import Conversation
from anchorjax.data.documents import Document
from anchorjax.data.sources import Weighted
from anchorjax.data.store.index import DTYPES, MAX_SOURCES
from anchorjax.data.store.tokens import check_range
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.data.text.round_trip import TokenizerFault
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.data.text.turns import ConversationEncoder
from anchorjax.errors import DataError

SPLITS = ("train", "validation")
ARRAYS, TRAINED = ("tokens", "lengths", "sources"), "trained"
Encoded = tuple[np.ndarray, np.ndarray | None]  # ids, and which of them are trained on; None: all
_ATTEMPT = "attempt-"  # prefix of directories of unfinished pieces
_AT_ONCE, _CHARACTERS_AT_ONCE = 64, 2**20  # documents that a tokenizer shares its cores among
_EXAMPLES = 3  # places kept of each reason


@dataclasses.dataclass
class Report:
    """Counts over a shard's rows."""

    rows: int = 0
    bad: dict[str, int] = dataclasses.field(default_factory=dict)  # by reason
    places: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # of the first bad rows, by reason
    details: dict[str, str] = dataclasses.field(default_factory=dict)  # of the first of them, by reason
    weighted_out: int = 0  # documents that a weight below 1 left out
    marks: int = 0  # byte order marks that were removed
    lost: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # characters that the tokenizer lost; see `round_trip`
    lacking: dict[str, int] = dataclasses.field(default_factory=dict)  # documents without a source, by reason
    least_draw: float = 1.0  # a larger data.held_out_share than this holds a document out; 1: none does

    @classmethod
    def of(cls, head: dict[str, Any]) -> "Report":
        """Reads the counts from a piece's JSON file."""
        return cls(**{field.name: head[field.name] for field in dataclasses.fields(cls)})

    def add_bad(self, error: BadRow, place: str | None) -> None:
        reason = str(error)
        self.bad[reason] = self.bad.get(reason, 0) + 1
        if place:
            self.places.setdefault(reason, []).append(place)
        if error.detail:
            self.details.setdefault(reason, error.detail)

    def add_document(self, document: Document, lost: dict[str, int]) -> None:
        self.marks += document.marked
        self.lost = _sum(self.lost, lost)
        if document.lacks:
            self.lacking[document.lacks] = self.lacking.get(document.lacks, 0) + 1

    def wants_place(self, reason: str) -> bool:
        return self.bad.get(reason, 0) < _EXAMPLES

    def add(self, other: "Report") -> None:
        self.rows += other.rows
        self.weighted_out += other.weighted_out
        self.marks += other.marks
        self.lost, self.lacking = _sum(self.lost, other.lost), _sum(self.lacking, other.lacking)
        self.details = other.details | self.details
        self.least_draw = min(self.least_draw, other.least_draw)
        for reason, count in other.bad.items():
            self.bad[reason] = self.bad.get(reason, 0) + count
            self.places[reason] = (self.places.get(reason, []) + other.places.get(reason, []))[:_EXAMPLES]


def _sum(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return first | {name: first.get(name, 0) + count for name, count in second.items()} if second else first


def vocab_size(tokenizer: Tokenizer, config: DataConfig) -> int:
    """Every id of a document is below it: conversations hold special tokens, too."""
    return tokenizer.chat_vocab_size if config.messages_key else tokenizer.vocab_size


def dtype_name(tokenizer: Tokenizer, config: DataConfig) -> str:
    """Returns the smallest type that holds the vocabulary."""
    return "uint16" if vocab_size(tokenizer, config) <= 2**16 else "uint32"


def done(directory: Path, number: int) -> dict[str, Any] | None:
    """Returns the content of a piece's JSON file, or None if the piece is not complete."""
    try:
        return json.loads((directory / f"{number:05d}.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def has_documents(directory: Path) -> bool:
    """Returns whether any finished piece has a document."""
    numbers = (int(file.stem) for file in directory.glob("[0-9]*.json"))
    heads = (done(directory, number) for number in numbers)
    return any(head[split]["documents"] for head in heads if head for split in SPLITS)


def progress(directory: Path) -> tuple[int, int]:
    """Returns (finished pieces, bytes of tokens, including those of unfinished pieces)."""
    entries = list(os.scandir(directory))
    finished = sum(entry.name.endswith(".json") for entry in entries)
    for attempt in [entry for entry in entries if entry.name.startswith(_ATTEMPT)]:
        with contextlib.suppress(OSError):  # it has just been finished, or is another user's
            entries += os.scandir(attempt)
    size = 0
    for entry in entries:
        if entry.name.endswith(".tokens"):
            with contextlib.suppress(OSError):
                size += entry.stat().st_size
    return finished, size


def clear(directory: Path) -> None:
    """Removes the directories of killed attempts."""
    for attempt in directory.glob(f"{_ATTEMPT}*"):
        shutil.rmtree(attempt, ignore_errors=True)  # a worker of a stopped preparation may still write into it


def make(directory: Path, number: int, weighted: Weighted, config: DataConfig, tokenizer_name: str) -> None:
    """Calls `write` with the tokenizer of `config`, which is kept for the next piece of this process.

    Raises:
      DataError: what `write` raises; the tokenizer cannot be loaded here, or has another name.
    """
    write(directory, number, weighted, config, _tokenizer(config.tokenizer, tokenizer_name))


@functools.cache
def _encoder(directory: str, tokenizer: Tokenizer) -> ConversationEncoder:
    try:
        return ConversationEncoder.open(directory, tokenizer)
    except ValueError as error:
        raise DataError(f"data.tokenizer={directory!r} cannot be used on {socket.gethostname()}: {error}") from error


@functools.cache
def _tokenizer(directory: str, name: str) -> Tokenizer:
    try:
        tokenizer = tokenizer_lib.load(directory)
    except ValueError as error:
        raise DataError(f"data.tokenizer={directory!r} cannot be used on {socket.gethostname()}: {error}") from error
    if tokenizer.name != name:
        raise DataError(f"data.tokenizer={directory!r} is {tokenizer.name} on {socket.gethostname()}, and not {name}")
    return tokenizer


def write(directory: Path, number: int, weighted: Weighted, config: DataConfig, tokenizer: Tokenizer) -> None:
    """Reads a shard and writes its piece.

    Raises:
      DataError: a bad row with `data.bad_rows="raise"`, an id outside the vocabulary, or a file that cannot be read.
    """
    attempt = directory / f"{_ATTEMPT}{uuid.uuid4().hex}"
    attempt.mkdir()  # and not by tempfile, whose directories are for one user
    try:
        _write(attempt, number, weighted, config, tokenizer)
        for path in sorted(attempt.iterdir(), key=lambda path: path.suffix == ".json"):  # it comes last
            os.replace(path, directory / path.name)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def _write(directory: Path, number: int, weighted: Weighted, config: DataConfig, tokenizer: Tokenizer) -> None:
    report = Report()
    with contextlib.ExitStack() as stack:
        splits = {split: stack.enter_context(_Split(directory, number, split, tokenizer, config)) for split in SPLITS}
        for row, document, (ids, trained) in _tokenized(weighted, config, tokenizer, report):
            if not ids.size:
                _bad(weighted, row, BadRow("no token in the text"), config, report)
                continue
            try:
                check_range(f"row {row}", ids, tokenizer, vocab_size(tokenizer, config))
            except ValueError as error:
                fault = f"{weighted.shard.place(row)}: {error}"
                raise DataError(fault + _otherwise(config) * isinstance(document.content, str)) from error
            report.add_document(document, _lost(weighted, row, document, config, tokenizer))
            copies = _copies(document, weighted.weight)
            if not copies:
                report.weighted_out += 1
                continue
            split = weighted.shard.split or _split_of(document, config, report)
            for _ in range(copies if split == "train" else 1):
                splits[split].add(ids, document.source, trained)
    content = dataclasses.asdict(report) | {name: split.counts() for name, split in splits.items()}
    (directory / f"{number:05d}.json").write_text(json.dumps(content))


def _tokenized(
    weighted: Weighted, config: DataConfig, tokenizer: Tokenizer, report: Report
) -> Iterator[tuple[int, Document, Encoded]]:
    """Yields (row, document, its tokens) in order; bad rows are added to the report."""
    # A tokenizer releases the GIL: while it encodes a batch, the last one is written and the next one is read.
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        before = None
        for batch in _batches(weighted, config, report):
            now = executor.submit(_encode, batch, config, tokenizer)
            if before:
                yield from _good(before.result(), weighted, config, report)
            before = now
        if before:
            yield from _good(before.result(), weighted, config, report)


def _good(
    rows: list[tuple[int, Document, Encoded | BadRow]], weighted: Weighted, config: DataConfig, report: Report
) -> Iterator[tuple[int, Document, Encoded]]:
    for row, document, encoded in rows:
        if isinstance(encoded, BadRow):
            _bad(weighted, row, encoded, config, report)
        else:
            yield row, document, encoded


def _batches(weighted: Weighted, config: DataConfig, report: Report) -> Iterator[list[tuple[int, Document]]]:
    waiting: list[tuple[int, Document]] = []
    size = 0
    for row, document in weighted.shard.rows():
        report.rows += 1
        if isinstance(document, BadRow):
            _bad(weighted, row, document, config, report)
            continue
        waiting.append((row, document))
        size += len(document.content)
        if len(waiting) == _AT_ONCE or size >= _CHARACTERS_AT_ONCE:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def _encode(
    batch: list[tuple[int, Document]], config: DataConfig, tokenizer: Tokenizer
) -> list[tuple[int, Document, Encoded | BadRow]]:
    if config.messages_key:
        encoded = _encoder(config.tokenizer, tokenizer).encode([document.content for _, document in batch])
        return [(row, document, one) for (row, document), one in zip(batch, encoded, strict=True)]
    texts = [document.content for _, document in batch if isinstance(document.content, str)]
    encoded = iter(tokenizer.encode_batch(texts) if texts else [])
    ids = [
        next(encoded) if isinstance(document.content, str) else _inner(document.content, tokenizer)
        for _, document in batch
    ]
    return [(row, document, (one, None)) for (row, document), one in zip(batch, ids, strict=True)]


def _inner(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Removes BOS and EOS at the ends: a row has one anchor, and a store adds EOS to each document."""
    begin = int(len(ids) > 0 and ids[0] == tokenizer.bos_id)
    end = len(ids) - int(len(ids) > begin and ids[-1] == tokenizer.eos_id)
    return ids[begin:end]


def _split_of(document: Document, config: DataConfig, report: Report) -> str:
    draw = document.draw("held out")
    report.least_draw = min(report.least_draw, draw)
    return "validation" if draw < config.held_out_share else "train"


def _lost(weighted: Weighted, row: int, document: Document, config: DataConfig, tokenizer: Tokenizer) -> dict[str, int]:
    content = document.content
    if isinstance(content, Conversation):
        content = "\n".join(message.get("content", "") for message in content.messages)
    try:
        return tokenizer.lost(content) if isinstance(content, str) else {}
    except TokenizerFault as error:
        raise DataError(f"{weighted.shard.place(row)}: {error}{_otherwise(config)}") from error


def _otherwise(config: DataConfig) -> str:
    return f"; choose another data.tokenizer than {config.tokenizer!r}"


def _bad(weighted: Weighted, row: int, error: BadRow, config: DataConfig, report: Report) -> None:
    if config.bad_rows == "raise":
        reason = f"{error} ({error.detail})" if error.detail else str(error)
        place = weighted.shard.place(row)
        raise DataError(f"{place}: {reason}; data.bad_rows='skip' leaves such rows out and counts them")
    report.add_bad(error, weighted.shard.place(row) if report.wants_place(str(error)) else None)


def _copies(document: Document, weight: float) -> int:
    whole = int(weight)
    return whole + (weight > whole and document.draw("weight") < weight - whole)


class _Split:
    """Appends documents to one split's arrays of a piece. A text gets EOS; a conversation has its own end."""

    def __init__(self, directory: Path, number: int, split: str, tokenizer: Tokenizer, config: DataConfig):
        arrays = (*ARRAYS, TRAINED) if config.messages_key else ARRAYS
        self._paths = [file_of(directory, number, split, array) for array in arrays]
        self._dtype = DTYPES[dtype_name(tokenizer, config)]
        self._eos = np.asarray([tokenizer.eos_id], self._dtype).tobytes()
        self._names: dict[str, int] = {}
        self._documents = self._tokens = self._trained = 0

    def __enter__(self) -> "_Split":
        self._files = [open(path, "wb") for path in self._paths]  # noqa: SIM115 - until __exit__
        return self

    def __exit__(self, *_) -> None:
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def add(self, ids: np.ndarray, source: str, trained: np.ndarray | None) -> None:
        tokens, lengths, sources, *flags = self._files
        tokens.write(ids.astype(self._dtype).tobytes())
        if trained is None:
            tokens.write(self._eos)
        else:
            flags[0].write(trained.tobytes())
            self._trained += int(trained.sum())
        length = len(ids) + (trained is None)
        lengths.write(length.to_bytes(8, "little"))
        sources.write(self._names.setdefault(source, len(self._names)).to_bytes(4, "little"))
        if len(self._names) > MAX_SOURCES:
            raise DataError(
                f"there are more than {MAX_SOURCES} sources, such as {source!r}; set data.source_key to a name "
                "that many documents share"
            )
        self._documents += 1
        self._tokens += length

    def counts(self) -> dict[str, Any]:
        names = list(self._names)
        return {"documents": self._documents, "tokens": self._tokens, "trained": self._trained, "source_names": names}


def file_of(directory: Path, number: int, split: str, array: str) -> Path:
    return directory / f"{number:05d}.{split}.{array}"
