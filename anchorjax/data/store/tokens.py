"""A token store: every document of a split, tokenized, with random access by document.

Packing is a pure function of (seed, row) because the store gives access to any token at any time. Small corpora are
tokenized into memory (`build`); larger ones are prepared once (`anchorjax prepare`) and opened by memory map.
"""

import collections
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from anchorjax.data.store import index as index_lib
from anchorjax.data.store.index import Index
from anchorjax.data.text.round_trip import TokenizerFault
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import DataError

log = logging.getLogger(__name__)

_AT_ONCE = 16  # documents; a tokenizer may share its cores among them, but keeps much more than the ids of each
_CHUNK = 2**24  # bytes read at once to verify


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """Documents end to end. All arrays may be memory-mapped: they are only sliced and gathered from.

    Attributes:
      tokens: [num_tokens] uint16 or int32; each document ends with EOS.
      offsets: [num_documents + 1] int64; document i is tokens[offsets[i]:offsets[i + 1]].
      fingerprint: sha256 (hex) of the tokenizer's name and of all that follows from the documents: tokens, offsets,
        sources, their names, and `trained` if it is there. A run that resumes on a store with another fingerprint
        would read other rows without any error.
      sources: [num_documents] int16; document i is from source_names[sources[i]]. Default: all from one.
      path: the directory that it was opened from. Another process gets the path and opens it again, not a copy.
      trained: bool [num_tokens], whether each token is one to train on; None for texts, which are trained on as a
        whole. In conversations these are the assistant's tokens.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    fingerprint: str
    sources: np.ndarray | None = None
    source_names: tuple[str, ...] = ("",)
    path: Path | None = None
    trained: np.ndarray | None = None

    def __post_init__(self):
        if self.sources is None:
            object.__setattr__(self, "sources", np.zeros(self.num_documents, np.int16))

    @classmethod
    def open(cls, path: str | Path) -> "TokenStore":
        """Memory-maps a prepared store: checks the files' sizes and the offsets, and reads no token.

        Raises:
          DataError: a file that is missing, of another size or type than index.json says, or offsets that do not
            ascend. Damage inside the files is found by `verify` only.
        """
        path = Path(path).expanduser().resolve()
        index = Index.read(path)
        tokens = _map_tokens(path / index_lib.TOKENS, index)
        offsets = _map_array(path / index_lib.OFFSETS, np.int64, index.num_documents + 1)
        sources = _map_array(path / index_lib.SOURCES, np.int16, index.num_documents)
        if offsets[0] != 0 or offsets[-1] != index.num_tokens or np.any(np.diff(offsets) < 1):
            raise DataError(f"{path / index_lib.OFFSETS} is damaged: it does not ascend from 0 to {index.num_tokens}")
        if sources.min() < 0 or sources.max() >= len(index.source_names):
            raise DataError(f"{path / index_lib.SOURCES} is damaged: there are {len(index.source_names)} sources")
        trained = None
        if index.trained_tokens is not None:
            trained = _map_values(path / index_lib.TRAINED, np.bool_, index.num_tokens)
        return cls(tokens, offsets, index.fingerprint, sources, tuple(index.source_names), path, trained)

    def __reduce__(self):
        if self.path is None:
            fields = dataclasses.fields(self)
            return TokenStore, tuple(getattr(self, field.name) for field in fields)
        return _open_again, (self.path, self.fingerprint)

    @property
    def vocab_size(self) -> int:
        """Every id is below it; 0 if that is not known, as the tokens are of the run's own tokenizer."""
        return Index.read(self.path).vocab_size if self.path and self.trained is not None else 0

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def document(self, index: int) -> np.ndarray:
        """Returns the tokens of document `index`, including EOS."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of a store of {self.num_documents}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def _open_again(path: Path, fingerprint: str) -> TokenStore:
    store = TokenStore.open(path)
    if store.fingerprint != fingerprint:
        raise DataError(f"{path} was replaced while a run was reading it")
    return store


def _map_tokens(file: Path, index: Index) -> np.ndarray:
    tokens = _map_values(file, index_lib.DTYPES[index.dtype], index.num_tokens)
    return tokens if index.dtype == "uint16" else tokens.view(np.int32)


def _map_values(file: Path, dtype: str | type, num_tokens: int) -> np.ndarray:
    """Maps a file of one value for each token, without a header."""
    size, expected = _size(file), num_tokens * np.dtype(dtype).itemsize
    if size != expected or not size:
        raise DataError(f"{file} is damaged: it has {size} bytes, and {num_tokens} tokens take {expected}")
    # Plain arrays: every row that is gathered from numpy's memmap would be a memmap too.
    return np.asarray(np.memmap(file, dtype, mode="r"))


def _map_array(file: Path, dtype: type, length: int) -> np.ndarray:
    _size(file)
    try:
        array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} is damaged: {error}") from error
    if array.dtype != dtype or array.shape != (length,):
        expected = f"{np.dtype(dtype)} [{length}]"
        raise DataError(f"{file} is damaged: it holds {array.dtype} {list(array.shape)}, not {expected}")
    return array


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error


def verify(path: str | Path) -> TokenStore:
    """Opens a store and reads all of it. Raises DataError naming the first file that is not what was written."""
    store = TokenStore.open(path)
    index = Index.read(store.path)
    for name, expected in index.sha256.items():
        with open(store.path / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise DataError(f"{store.path / name} is damaged: its sha256 is not the one in {index_lib.FILE}")
    for first in range(0, store.num_tokens, _CHUNK):
        piece = store.tokens[first : first + _CHUNK]
        if piece.min() < 0 or piece.max() >= index.vocab_size:
            raise DataError(
                f"{store.path} is damaged: it has tokens outside the vocabulary, 0 to {index.vocab_size - 1}"
            )
    if store.trained is not None and (found := np.count_nonzero(store.trained)) != index.trained_tokens:
        said = f"{index_lib.FILE} says {index.trained_tokens}"
        raise DataError(f"{store.path / index_lib.TRAINED} is damaged: {found} tokens are trained on, and {said}")
    found = fingerprint(index.tokenizer, store.tokens, store.offsets, store.sources, store.source_names, store.trained)
    if found != store.fingerprint:
        raise DataError(f"{store.path / index_lib.FILE} is damaged: its fingerprint is not that of the tokens")
    return store


def build(documents: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> TokenStore:
    """Tokenizes every document's "text" and appends EOS.

    Documents without a token are left out. Their number and that of characters without a token are logged.

    Raises:
      ValueError: no document with a token.
      TokenizerFault: an id outside the vocabulary, or a character that belongs to texts and has no token (the document
        is named by index).
    """
    # The smallest type that holds the vocabulary: a corpus is read far more often than built.
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    eos = np.asarray([tokenizer.eos_id], dtype)
    pieces, sources, names, lost = [], [], {}, collections.Counter()
    for source, ids in _encode(documents, tokenizer, lost):
        if ids.size:
            pieces += [ids.astype(dtype), eos]
            sources.append(names.setdefault(source, len(names)))
    if not pieces:
        raise ValueError(f"the corpus has no text in its {len(documents)} documents")
    if len(names) > index_lib.MAX_SOURCES:
        raise ValueError(f"the corpus has {len(names)} sources; allowed: up to {index_lib.MAX_SOURCES}")
    if empty := len(documents) - len(sources):
        log.warning("%d of %d documents are empty and left out", empty, len(documents))
    if lost:
        log.warning("%d characters have no token and are left out, such as %s", lost.total(), max(lost, key=lost.get))
    tokens = np.concatenate(pieces)
    lengths = [len(piece) + 1 for piece in pieces[::2]]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    sources = np.asarray(sources, np.int16)
    mark = fingerprint(tokenizer.name, tokens, offsets, sources, tuple(names))
    return TokenStore(tokens, offsets, mark, sources, tuple(names))


def _encode(
    documents: Sequence[Mapping[str, str]], tokenizer: Tokenizer, lost: collections.Counter
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the source and the ids of each document; adds lost characters to `lost`."""
    for first in range(0, len(documents), _AT_ONCE):
        some = [documents[index] for index in range(first, min(first + _AT_ONCE, len(documents)))]
        batch = tokenizer.encode_batch([document["text"] for document in some])
        for index, (document, ids) in enumerate(zip(some, batch, strict=True), first):
            try:
                check_range(f"document {index}", ids, tokenizer, tokenizer.vocab_size)
            except ValueError as error:
                raise TokenizerFault(str(error)) from error
            try:
                lost.update(tokenizer.lost(document["text"]))
            except TokenizerFault as error:
                raise TokenizerFault(f"document {index}: {error}") from error
            yield document.get("source", ""), ids


def check_range(name: str, ids: np.ndarray, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises ValueError, which begins with `name`, for an id outside the vocabulary."""
    if ids.size == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise ValueError(
            f"{name}: token id {bad} is outside the vocabulary of {tokenizer.name!r}, 0 to {vocab_size - 1}"
        )


def fingerprint(
    tokenizer_name: str,
    tokens: np.ndarray,
    offsets: np.ndarray,
    sources: np.ndarray,
    source_names: Sequence[str],
    trained: np.ndarray | None = None,
) -> str:
    """Returns the fingerprint of `TokenStore`. `joining.join` computes the same from pieces."""
    digest = hashlib.sha256(tokenizer_name.encode())
    for array in (tokens, offsets, sources):
        digest.update(array.data)
    digest.update(json.dumps(list(source_names)).encode())
    if trained is not None:
        digest.update(trained.data)
    return digest.hexdigest()
