"""Tokenizers turn a text into ids and back.

BOS is the anchor of every row, and EOS ends every document. There is a tokenizer of bytes, and any tokenizer of a
Hugging Face directory that loses no text: usually byte-level BPE (Llama 3, Qwen, SmolLM2) or SentencePiece with byte
fallback (Llama 2, Mistral, Gemma). See `round_trip`.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from anchorjax.data.text import round_trip
from anchorjax.data.text.special_tokens import content_of, named_specials, read_fields, tokens_to_add

_BYTES = 256


class Tokenizer(Protocol):
    """The interface that the rest of the package uses.

    Attributes:
      name: identifies the encoding, not the path: two tokenizers of one name give the same ids.
      vocab_size: V; every id is below it.
      bos_id, eos_id, pad_id: special tokens; some may be the same.
      token_bytes_V: int32 [V], UTF-8 bytes of each token, 0 for special tokens; needed for bits per byte.
    """

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def token_bytes_V(self) -> np.ndarray: ...

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 ids of `text` without special tokens: text that spells one stays text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes several texts."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of `encode`, and int64 [T, 2]: the characters [begin, end) of each token.

        Tokens that share the bytes of a character both cover it; the space before a word belongs to the word.
        """
        ...

    def decode(self, ids) -> str:
        """Returns the text of ids; special tokens and unknown ids are dropped, broken UTF-8 becomes U+FFFD."""
        ...

    def within(self, vocab_size: int) -> "Tokenizer":
        """For a model of `vocab_size` tokens: a padding id without an embedding becomes EOS."""
        ...

    def lost(self, text: str) -> dict[str, int]:
        """Counts what `decode(encode(text))` loses, by name: see `round_trip.Losses.count`."""
        ...


def load(name: str) -> Tokenizer:
    """Loads the tokenizer "bytes", or that of a directory with tokenizer.json. Raises ValueError with the reason."""
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    return HuggingFaceTokenizer.open(Path(name).expanduser())


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """One token per UTF-8 byte. It needs no files and loses no text.

    Ids 0..255 are bytes, 256 is BOS, 257 is EOS, 258 is padding.
    """

    name: str = "bytes"
    vocab_size: int = 259
    bos_id: int = 256
    eos_id: int = 257
    pad_id: int = 258

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self.encode(text)
        character_T = (
            np.cumsum((ids & 0xC0) != 0x80, dtype=np.int64) - 1
        )  # continuation bytes belong to the same character
        return ids, np.stack([character_T, character_T + 1], -1)

    def decode(self, ids) -> str:
        ids = np.asarray(ids, np.int64)
        kept = ids[(ids >= 0) & (ids < _BYTES)]
        return kept.astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def within(self, vocab_size: int) -> "ByteTokenizer":
        return self

    def lost(self, text: str) -> dict[str, int]:
        return {}

    @functools.cached_property
    def token_bytes_V(self) -> np.ndarray:
        return (np.arange(self.vocab_size) < _BYTES).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFaceTokenizer:
    """A tokenizer.json with the tokens that the files beside it name, as transformers reads them.

    Without BOS (Qwen) the anchor is EOS; without a padding token, padding is EOS.

    `token_bytes_V` counts the text after the tokenizer's normalization (Qwen: NFC), including the one space that
    SentencePiece puts before a text. A "▁" in the text counts as a space, which SentencePiece writes that way.
    `round_trip` lists what else may come back different, and `lost` counts it.
    """

    name: str
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    token_bytes_V: np.ndarray = dataclasses.field(repr=False)
    rules: Any = dataclasses.field(repr=False)  # a tokenizers.Tokenizer

    @classmethod
    def open(cls, directory: Path) -> "HuggingFaceTokenizer":
        """Reads a directory. Raises ValueError: a missing or unreadable file, lost text, unusable special tokens."""
        import tokenizers  # only runs that use it need it

        file = directory / "tokenizer.json"
        if not file.exists():
            raise ValueError(f"there is no {file}; it must be {ByteTokenizer.name}, or a directory with tokenizer.json")
        spec = read_fields(file)
        try:
            content = file.read_bytes()
            rules = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises just that
            raise ValueError(f"{file} cannot be read: {error}") from error
        rules.no_truncation()  # some files cut texts to what their model took
        rules.no_padding()
        rules.encode_special_tokens = True  # as text, that is
        added = tokens_to_add(directory, rules)
        rules.add_tokens([tokenizers.AddedToken(**token) for token in added])
        added = [token | {"id": rules.token_to_id(token["content"])} for token in added]
        token_bytes_V = _token_bytes(spec, rules)
        specials = _specials(directory, rules.get_vocab(with_added_tokens=True))
        marked = {index for index, token in rules.get_added_tokens_decoder().items() if token.special}
        rules.add_special_tokens([rules.id_to_token(index) for index in specials if index not in marked])
        token_bytes_V[list(specials)] = 0
        digest = hashlib.sha256(content + repr((*specials, *added)).encode()).hexdigest()
        # A text never encodes to other special tokens: Gemma 3's are above the model's vocabulary.
        others = {index for index, token in rules.get_added_tokens_decoder().items() if token.special} - set(specials)
        top = max(set(rules.get_vocab(with_added_tokens=True).values()) - others)
        tokenizer = cls(f"hf:{digest[:16]}", top + 1, *specials, token_bytes_V[: top + 1], rules)
        tokenizer._check_round_trip(file, spec)
        return tokenizer

    def _check_round_trip(self, file: Path, spec: dict[str, Any]) -> None:
        added = [token.content for token in self.rules.get_added_tokens_decoder().values() if not token.special]
        try:
            round_trip.check(self._trip, self.token_bytes_V, added, spec)
        except ValueError as error:
            parts = _part_types(spec.get("normalizer")) | _part_types(spec.get("pre_tokenizer"))
            scheme = f"{spec['model'].get('type')} with {', '.join(sorted(parts)) or 'nothing'}"
            raise ValueError(
                f"{file} cannot be used: {error}; this is {scheme}, and what works is byte-level with all 256 bytes, "
                "or SentencePiece with byte fallback and all of <0x00> to <0xFF>"
            ) from error

    def _trip(self, texts: Sequence[str]) -> list[tuple[np.ndarray, str]]:
        ids = self.encode_batch(texts)
        return list(zip(ids, self.rules.decode_batch([one.tolist() for one in ids]), strict=True))

    def lost(self, text: str) -> dict[str, int]:
        return self._losses.count(text)

    @functools.cached_property
    def _losses(self) -> round_trip.Losses:
        specials = [token.content for token in self.rules.get_added_tokens_decoder().values() if token.special]
        pieces = [
            piece for piece in map("<0x{:02X}>".format, range(_BYTES)) if self.rules.token_to_id(piece) is not None
        ]
        return round_trip.Losses(self._trip, [*specials, *pieces])

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        # "fast" computes no offsets; the texts share the machine's cores.
        encodings = self.rules.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoding = self._rules_of_whole_words.encode(text, add_special_tokens=False)
        return np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int64).reshape(-1, 2)

    @functools.cached_property
    def _rules_of_whole_words(self):
        """Rules without the post-processor, which cuts the space off the offsets of Llama 3's and Qwen's words."""
        rules = self._copy_of_rules(encode_special_tokens=True)
        rules.post_processor = None
        return rules

    def encode_with_specials(self, text: str, frame: bool = False) -> np.ndarray:
        """Returns int32 ids of a text whose spelled special tokens become those tokens, as chat templates need.

        `frame` adds what tokenizer.json puts around a text, as transformers does by default: BOS for Llama and Gemma,
        nothing for Qwen and SmolLM2. Ids may be at or above `vocab_size`, which covers plain text only.
        """
        encoding = self._rules_with_specials.encode_batch_fast([text], add_special_tokens=frame)[0]
        return np.asarray(encoding.ids, np.int32)

    def encode_with_specials_and_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns for each text the ids of `encode_with_specials`, and int64 [T, 2] as `encode_with_offsets` does."""
        encodings = self._rules_of_chats.encode_batch(texts, add_special_tokens=False)
        return [
            (np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int64).reshape(-1, 2))
            for encoding in encodings
        ]

    def spell(self, index: int) -> str:
        """Returns the text that `encode_with_specials` reads as this special token."""
        return self.rules.decode([index], skip_special_tokens=False)

    @functools.cached_property
    def _rules_of_chats(self):
        rules = self._copy_of_rules(encode_special_tokens=False)
        rules.post_processor = None  # as for `encode_with_offsets`
        return rules

    @functools.cached_property
    def chat_vocab_size(self) -> int:
        """Every id of `encode_with_specials` is below it."""
        return max(self.rules.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def _rules_with_specials(self):
        return self._copy_of_rules(encode_special_tokens=False)

    def _copy_of_rules(self, encode_special_tokens: bool):
        rules = type(self.rules).from_str(self.rules.to_str())
        rules.encode_special_tokens = encode_special_tokens  # the file does not record it
        return rules

    def decode(self, ids) -> str:
        ids = np.asarray(ids, np.int64)
        kept = ids[(ids >= 0) & (ids < self.vocab_size)]
        return self.rules.decode(kept.tolist(), skip_special_tokens=True)

    def within(self, vocab_size: int) -> "HuggingFaceTokenizer":
        # Llama 2 with a [PAD] added for fine-tuning: no text and no target contains it.
        needed = max(int(np.flatnonzero(self.token_bytes_V)[-1]), self.bos_id, self.eos_id) + 1
        if self.pad_id < vocab_size or needed > vocab_size:
            return self
        known = {"vocab_size": needed, "token_bytes_V": self.token_bytes_V[:needed]}
        return dataclasses.replace(self, pad_id=self.eos_id, **known)


def _specials(directory: Path, vocabulary: dict[str, int]) -> tuple[int, int, int]:
    """Returns the ids of BOS, EOS and padding."""
    tokens = named_specials(directory)
    ids = read_fields(directory / "config.json")

    def find(name: str) -> int | None:
        token = content_of(tokens.get(f"{name}_token"))
        if token is not None and token != "":  # which is no token in transformers either
            if not isinstance(token, str) or token not in vocabulary:
                raise ValueError(f"{directory}: {name}_token {token!r} is not in tokenizer.json")
            return vocabulary[token]
        found = ids.get(f"{name}_token_id") if name != "pad" else None
        found = found[0] if isinstance(found, list) and found else found
        if found is not None and (type(found) is not int or found not in vocabulary.values()):
            raise ValueError(f"{directory}: {name}_token_id {found!r} is not in tokenizer.json")
        return found

    eos, bos, pad = find("eos"), find("bos"), find("pad")
    if eos is None:
        hidden = "added_tokens_decoder" in tokens and (directory / "special_tokens_map.json").exists()
        why = " (special_tokens_map.json is ignored if there is an added_tokens_decoder)" if hidden else ""
        raise ValueError(f"{directory}: neither tokenizer_config.json nor config.json names an EOS token{why}")
    return eos if bos is None else bos, eos, eos if pad is None else pad


def _token_bytes(spec: dict[str, Any], rules) -> np.ndarray:
    """Returns int32 [V], the bytes of each token by its spelling; `round_trip.check` verifies them."""
    parts = _part_types(spec.get("normalizer")) | _part_types(spec.get("pre_tokenizer"))
    is_byte_level = "ByteLevel" in parts
    vocabulary = rules.get_vocab(with_added_tokens=True)
    token_bytes = np.zeros(max(vocabulary.values()) + 1, np.int32)
    for token, index in vocabulary.items():
        token_bytes[index] = len(token) if is_byte_level else _piece_bytes(token)  # there a byte is a character
    for index, added in rules.get_added_tokens_decoder().items():  # the library ignores the file's ids
        spelled = len(added.content.encode()) if is_byte_level else _piece_bytes(added.content)
        token_bytes[index] = 0 if added.special else spelled
    return token_bytes


def _piece_bytes(piece: str) -> int:
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return 1
    return len(piece.replace("▁", " ").encode())


def _part_types(part: dict[str, Any] | None) -> set[str]:
    """Returns the types of a normalizer or pre-tokenizer and of its parts."""
    if part is None:
        return set()
    inner = part.get("normalizers", []) + part.get("pretokenizers", [])
    return {part["type"]}.union(*map(_part_types, inner))
