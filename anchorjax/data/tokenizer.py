"""Tokenizers: what turns a document into ids and back.

A tokenizer has `name`, `vocab_size`, `bos_id`, `eos_id`, `pad_id`, `encode`, `decode` and `token_bytes_V`.
The beginning of sequence is the anchor of every row, the end of sequence closes every document.
"""

import dataclasses
import functools

import numpy as np

_BYTES = 256


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """One token per UTF-8 byte: nothing to download, and every text survives the round trip.

    Ids 0..255 are bytes, 256 the beginning of sequence, 257 the end of sequence, 258 the pad.
    """

    name: str = "bytes"
    vocab_size: int = 259
    bos_id: int = 256
    eos_id: int = 257
    pad_id: int = 258

    def encode(self, text: str) -> np.ndarray:
        """int32 ids of `text`, without special tokens."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids) -> str:
        """Text of a sequence of ids; ids that are not bytes are dropped, broken UTF-8 becomes U+FFFD."""
        ids = np.asarray(ids, np.int64)
        kept = ids[(ids >= 0) & (ids < _BYTES)]
        return kept.astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    @functools.cached_property
    def token_bytes_V(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes each token stands for, 0 for specials; makes bits per byte comparable."""
        return (np.arange(self.vocab_size) < _BYTES).astype(np.int32)


_TOKENIZERS = {"bytes": ByteTokenizer}


def load(name: str) -> ByteTokenizer:
    """The tokenizer called `name`. Raises ValueError listing the names that exist."""
    if name not in _TOKENIZERS:
        raise ValueError(f"unknown tokenizer {name!r}; allowed: {', '.join(sorted(_TOKENIZERS))}")
    return _TOKENIZERS[name]()
