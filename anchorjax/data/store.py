"""A token store: every document of a split, tokenized, with random access by document.

Packing is a pure function of (seed, row) only because any token can be reached at any time, so the store
comes first and the order later.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from anchorjax.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_AT_ONCE = 16  # documents; a tokenizer may share its cores among them, but keeps much more than the ids of each


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """Documents end to end. Both arrays may be memory-mapped: they are only sliced and gathered from.

    Attributes:
      tokens: [num_tokens] uint16 or int32; each document ends with the end-of-sequence token.
      offsets: [num_documents + 1] int64; document i is tokens[offsets[i]:offsets[i + 1]].
      fingerprint: sha256 (hex) of the tokenizer's name, the tokens and the offsets. A run that resumes on a
        store with another fingerprint would read other text without any error.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    fingerprint: str

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def document(self, index: int) -> np.ndarray:
        """Tokens of document `index`, its end-of-sequence token included."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of a store of {self.num_documents}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def build(documents: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> TokenStore:
    """Tokenizes every document's "text" and appends the end-of-sequence token.

    Documents without a token are left out, and their number is logged.

    Raises:
      ValueError: no document with a token; an id outside the vocabulary (the document is named by index).
    """
    # The smallest type that holds the vocabulary: a corpus is read far more often than built.
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    eos = np.asarray([tokenizer.eos_id], dtype)
    pieces = []
    for ids in _encode(documents, tokenizer):
        if ids.size:
            pieces += [ids.astype(dtype), eos]
    if not pieces:
        raise ValueError(f"the corpus has no text in its {len(documents)} documents")
    if empty := len(documents) - len(pieces) // 2:
        log.warning("%d of %d documents are empty and left out", empty, len(documents))
    tokens = np.concatenate(pieces)
    lengths = [len(piece) + 1 for piece in pieces[::2]]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenStore(tokens, offsets, _fingerprint(tokenizer.name, tokens, offsets))


def _encode(documents: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    for first in range(0, len(documents), _AT_ONCE):
        indices = range(first, min(first + _AT_ONCE, len(documents)))
        batch = tokenizer.encode_batch([documents[index]["text"] for index in indices])
        for index, ids in zip(indices, batch, strict=True):
            _check_range(index, ids, tokenizer)
            yield ids


def _check_range(index: int, ids: np.ndarray, tokenizer: Tokenizer) -> None:
    if ids.size == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= tokenizer.vocab_size:
        bad = low if low < 0 else high
        raise ValueError(
            f"document {index}: token id {bad} is outside the vocabulary of {tokenizer.name!r}, "
            f"0 to {tokenizer.vocab_size - 1}"
        )


def _fingerprint(tokenizer_name: str, tokens: np.ndarray, offsets: np.ndarray) -> str:
    digest = hashlib.sha256(tokenizer_name.encode())
    digest.update(tokens.data)
    digest.update(offsets.data)
    return digest.hexdigest()
