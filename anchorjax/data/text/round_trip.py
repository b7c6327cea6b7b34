"""Round-trip check: a tokenizer must decode what it encoded to the same text.

These lose text without an error: a vocabulary without all bytes, a byte fallback without `<0x00>` to `<0xFF>`, a
normalizer that lowers, strips or folds letters, an added token that removes the spaces around it. Therefore these
texts are encoded and decoded before a tokenizer is used: every byte of UTF-8, every added token, every string that a
normalizer or pre-tokenizer removes, and a sample of Unicode. A regular expression that removes something is rejected,
as no text proves that it loses nothing. A split that removes all but its matches (GPT-4's) is judged by those texts.

These differences are allowed:

- Unicode's canonical equivalence (Qwen normalizes to NFC): the same text by the standard (UAX 15).
- One space at the beginning of a text, and one after an added token (SentencePiece adds them).
- "▁" becomes the space for which SentencePiece writes it.
- Control characters but tab and line ends, and code points that Unicode has not assigned: SmolLM2 has no tokens for
  U+0004, U+0006, U+0013, U+0014, U+0016, U+001D and U+40000 to U+7FFFF.
- Special tokens and bytes that a text spells ("</s>", "<0x0A>"), which a Unigram model reads as those tokens.

The last three lose something; `Losses.count` counts it.
"""

import functools
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_SEED, _SAMPLES = 0, 400
_LINES = "\t\n\v\f\r"  # control characters that belong to texts
_SPACE = "▁"
# Words come first, so that an error shows a readable text.
_PLAIN = (
    "Hello World",
    "two  spaces,   three\n\n\tand lines \r\n ",
    "  indented",
    "café, Zoë: 12 € — “quoted” ½ ﬁ",
    "日本語の文章です。",
    "1,234.5 don't I'm\u00a0x_y <b>",
    "🙂👩‍👩‍👧 𝔘𝔫𝔦 ",
    "``quoted'' \"--\" (c)…\n\n\n\n\n\n        x\r\n\r\n\r\n",  # runs that normalizers change
)
_OPERATORS = frozenset("\\.^$*+?()[]{}|")  # a regular expression without them is a string


class TokenizerFault(ValueError):
    """The tokenizer is at fault, and not the text that it was given."""


Trip = Callable[[Sequence[str]], list[tuple[np.ndarray, str]]]  # texts -> (ids, what they decode to) of each


def check(trip: Trip, token_bytes_V: np.ndarray, added: Sequence[str], spec: Mapping[str, Any]) -> None:
    """Raises ValueError naming a text that is lost and what comes back, or one whose bytes are miscounted.

    Args:
      added: tokens that are text (not special).
      spec: tokenizer.json.
    """
    strings, expressions = [], []
    for step, pattern in (*_taken_out(spec.get("normalizer")), *_taken_out(spec.get("pre_tokenizer"))):
        if "Regex" in pattern and _OPERATORS.intersection(pattern["Regex"]):
            expressions.append((step, pattern["Regex"]))
        else:
            strings += pattern.values()
    texts = [*_PLAIN, *(f"a{part}b" for part in (*strings, *_characters())), *_sample()]
    around = {text: token for token in added for text in (f"a{token}b", f"a  {token}  b")}
    kept = []
    for text, ids, back in _made(trip, [*texts, *around]):
        token = around.get(text)
        if _is_kept(text, back) or (token and _is_kept(text, back.replace(f"{token} ", token, 1))):
            kept.append((text, ids, back))
        elif not (len(text) == 3 and _is_allowed(text[1])):
            raise ValueError(f"it loses text: {text!r} comes back as {back!r}")
    for text, ids, back in kept:
        counted = int(token_bytes_V[ids].sum())
        if counted - len(back.encode()) not in (0, 1):  # SentencePiece's space before a text is not given back
            raise ValueError(f"its tokens of {text!r} stand for {counted} bytes, but {back!r} comes back")
    for step, expression in expressions:
        raise ValueError(f"its {step} takes out what matches {expression!r}, and that may lose text")


def _taken_out(part: Mapping[str, Any] | None) -> Iterator[tuple[str, dict[str, str]]]:
    """Returns (type, pattern) of each step of a normalizer or pre-tokenizer that replaces or removes its matches."""
    if part is None:
        return
    for inner in (*part.get("normalizers", ()), *part.get("pretokenizers", ())):
        yield from _taken_out(inner)
    kind = part["type"]
    removes = kind == "Split" and part["behavior"] == "Removed"
    if kind == "Replace" or (removes and not (part["invert"] and "Regex" in part["pattern"])):
        yield kind, part["pattern"]
    elif kind == "CharDelimiterSplit":
        yield kind, {"String": part["delimiter"]}


def _made(trip: Trip, texts: Sequence[str]) -> Iterator[tuple[str, np.ndarray, str]]:
    for text, (ids, back) in zip(texts, trip(texts), strict=True):
        yield text, ids, back


def _is_kept(text: str, back: str) -> bool:
    if text == back:
        return True
    text, back = (unicodedata.normalize("NFC", one).replace(_SPACE, " ") for one in (text, back))
    return back in (text, f" {text}", text.removeprefix(" "))


def _is_allowed(character: str) -> bool:
    """Returns whether the difference is one of those that the module allows."""
    return character not in _LINES and unicodedata.category(character) in ("Cc", "Cn")


def _characters() -> Iterator[str]:
    """Returns characters with every byte of UTF-8 in each position.

    All of U+0000 to U+07FF, and above that three of every 64 (or 4096) that share all bytes but the last (or two).
    """
    yield from map(chr, range(0x800))
    for begin, end, size in ((0x800, 0xD800, 64), (0xE000, 0x10000, 64), (0x10000, 0x110000, 4096)):
        for first in range(begin, end, size):
            for step in range(3):
                character = chr(first + (first // size * 67 + step * size // 3) % size)
                if character != _SPACE:
                    yield character


def _sample() -> Iterator[str]:
    """Returns random texts of letters, spaces and assigned characters."""
    rng = random.Random(_SEED)
    for _ in range(_SAMPLES):
        yield "".join(_draw(rng) for _ in range(rng.randint(4, 24)))


def _draw(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-")
    if kind < 0.5:
        return rng.choice((" ", " ", "  ", "\n", "\t", "\r\n"))
    while True:
        character = chr(rng.randrange(0x20000 if kind < 0.7 else 0x3000))
        if unicodedata.category(character) not in ("Cc", "Cn", "Cs") and character != _SPACE:
            return character


class Losses:
    """What a tokenizer loses of texts; each character is tested when it first occurs."""

    def __init__(self, trip: Trip, spelled: Iterable[str]):
        """Args: spelled: special tokens and bytes as a text may spell them."""
        self._trip = trip
        self._kept: set[str] = set()
        self._kept_ascii = b""  # those of one byte
        self._lost: dict[str, str] = {}  # character -> what messages call it
        lost = [token for token, _, back in self._between(list(spelled)) if not _is_kept(f"a{token}b", back)]
        self._spelled = re.compile("|".join(map(re.escape, sorted(lost, key=len, reverse=True)))) if lost else None

    @functools.cached_property
    def _drops_space(self) -> bool:
        (bare, _), (spaced, _) = self._trip(["a", " a"])
        return np.array_equal(bare, spaced)

    def count(self, text: str) -> dict[str, int]:
        """Counts the characters and spelled tokens of a text that have no token, by name.

        Raises TokenizerFault if the tokenizer loses a character that belongs to texts.
        """
        # Deleting bytes takes a tenth of the time that a set of all characters does, which a preparation would notice.
        characters = set(text.encode().translate(None, self._kept_ascii).decode())
        if new := characters - self._kept - self._lost.keys():
            self._try(sorted(new))
            self._kept_ascii = "".join(filter(str.isascii, self._kept)).encode()
        found = {self._lost[character]: text.count(character) for character in sorted(characters & self._lost.keys())}
        if text.startswith(" ") and self._drops_space:
            found["the space before a text"] = 1
        for match in self._spelled.finditer(text) if self._spelled else ():
            found[match[0]] = found.get(match[0], 0) + 1
        return found

    def _try(self, characters: list[str]) -> None:
        for character, text, back in self._between(characters):
            if _is_kept(text, back) and (character != _SPACE or _SPACE in back):
                self._kept.add(character)
            elif character == _SPACE or _is_allowed(character):
                self._lost[character] = f"U+{ord(character):04X}"
            else:
                raise TokenizerFault(f"the tokenizer loses U+{ord(character):04X}: {text!r} comes back as {back!r}")

    def _between(self, tokens: Sequence[str]) -> Iterator[tuple[str, str, str]]:
        texts = [f"a{token}b" for token in tokens]
        for token, (text, _, back) in zip(tokens, _made(self._trip, texts), strict=True):
            yield token, text, back
