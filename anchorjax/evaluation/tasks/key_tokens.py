"""The key tokens of LongPPL (arXiv 2410.23771), the perplexity of those tokens only for which the long context matters.

A model, the evaluator, reads each document twice: whole, and in windows in which a token has no more than a short
context before it. With l the whole text before token x and s the short one,

  LSD = log p(x | l) - log p(x | s)      what the long context gains
  LCL = log p(x | l)                     whether the token can be known at all

and x is a key token if LSD > alpha and LCL > beta. LongPPL of a model is exp of its mean -log p(x | l) over key tokens,
all documents together. Between tokenizers key tokens travel as spans of characters.

Unlike the authors' code (the PyPI package longppl): BOS precedes every text and window, for the evaluator and for
the model alike; the mean is over tokens and not over documents; spaces belong to the word behind them, whatever a
tokenizer's offsets leave out; and where there are no key tokens, nothing is computed from none.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from anchorjax.data.text import text_file
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import EvaluationError, UsageError
from anchorjax.evaluation import windows
from anchorjax.evaluation.tasks.perplexity import perplexity
from anchorjax.evaluation.texts import Chosen, digest

Span = tuple[int, int]  # characters [begin, end)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What makes a key token; the defaults are the paper's.

    Attributes:
      context: tokens of short context, at least: those before it in a document are never key tokens.
      stride: tokens that share a window; a token's short context is up to `stride - 1` longer.
      alpha: nats; LSD must be above.
      beta: nats; LCL must be above.
    """

    context: int = 4096
    stride: int = 1024
    alpha: float = 2.0
    beta: float = -2.0

    def __post_init__(self):
        if not (math.isfinite(self.alpha) and math.isfinite(self.beta)):
            raise UsageError(f"--alpha={self.alpha} --beta={self.beta} is not allowed: both must be finite")

    def windows(self, size: int) -> list[windows.Window]:
        """In which the tokens of a document have the short context."""
        return windows.short_contexts(size, self.context, self.stride)

    def key_tokens(self, long_T: np.ndarray, short_T: np.ndarray) -> np.ndarray:
        """bool [T] from -log p in the long and in the short context; NaN (no score) makes no key token."""
        return (short_T - long_T > self.alpha) & (-long_T > self.beta)


def merge(offsets_T2: np.ndarray, keys_T: np.ndarray) -> list[Span]:
    """The characters of the key tokens; spans that touch are one."""
    found: list[Span] = []
    for begin, end in offsets_T2[keys_T].tolist():
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif begin < end:
            found.append((begin, end))
    return found


def inside(offsets_T2: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """bool [T]: tokens that lie in one of the spans (ascending, apart) with all of their characters."""
    if not spans:
        return np.zeros(len(offsets_T2), bool)
    begins_S, ends_S = np.asarray(spans).T
    begin_T, end_T = offsets_T2.T
    span_T = np.searchsorted(begins_S, begin_T, side="right") - 1
    return (span_T >= 0) & (end_T <= ends_S[span_T]) & (begin_T < end_T)


@dataclasses.dataclass(frozen=True)
class Piece:
    """The beginning of a document: `text[:end]`, which has `length` tokens of the evaluator at most."""

    text: str = dataclasses.field(repr=False)
    end: int
    length: int

    @classmethod
    def cut(cls, document: Chosen, tokenizer: Tokenizer, length: int) -> "Piece":
        """Up to the character with which the first token that was not chosen begins."""
        _, offsets_T2 = tokenizer.encode_with_offsets(document.text)
        taken = len(document.ids_T)
        return cls(document.text, int(offsets_T2[taken, 0]) if taken < len(offsets_T2) else len(document.text), length)

    @property
    def name(self) -> str:
        """Names the piece among all others; the `id` of its answers."""
        return f"{digest(self.text)} {self.end}"

    def tokens(self, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """(ids [T], offsets [T, 2]) of the tokens that end within the piece; none is of a text that was cut."""
        ids_T, offsets_T2 = tokenizer.encode_with_offsets(self.text)
        size = int(np.searchsorted(offsets_T2[:, 1], self.end, side="right"))
        return ids_T[:size], offsets_T2[:size]


def sums_of(nats_T: np.ndarray, keys_T: np.ndarray) -> dict:
    """What `summary` adds up, of one document."""
    return {
        "nats": float(nats_T.sum()),
        "tokens": len(nats_T),
        "key_nats": float(nats_T[keys_T].sum()),
        "keys": int(keys_T.sum()),
    }


def summary(sums: Sequence[Mapping]) -> dict:
    """Perplexities of some documents; each key token weighs the same, and `longppl` is None if there is none."""
    nats, tokens, key_nats, keys = (sum(one[name] for one in sums) for name in ("nats", "tokens", "key_nats", "keys"))
    return {
        "documents": len(sums),
        "tokens": tokens,
        "key_tokens": keys,
        "key_share": keys / tokens,
        "longppl": perplexity(key_nats / keys) if keys else None,
        "perplexity": perplexity(nats / tokens),
    }


def from_json(file: Path, texts: Sequence[str]) -> tuple[dict[Piece, list[Span]], dict]:
    """(spans of a file of key tokens, by the pieces of the texts in which they are; how the file was made).

    Raises:
      EvaluationError: the file cannot be read, or is about other texts.
    """
    by_digest = {digest(text): text for text in texts}
    try:
        text, is_marked = text_file.read(file.expanduser())
        content = json.loads(text)
        made = {"evaluator": content["evaluator"], "rule": content["rule"], "key_tokens": digest(json.dumps(content))}
        found = dict(_entry(entry, by_digest) for entry in content["documents"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"--key-tokens={file} cannot be used: {error!r}") from error
    if not found:
        raise EvaluationError(f"--key-tokens={file} cannot be used: it names no documents")
    text_file.say_marks(f"--key-tokens={file}", is_marked)
    return found, made


def _entry(entry: Mapping, by_digest: Mapping[str, str]) -> tuple[Piece, list[Span]]:
    name, end, length = entry["document"], int(entry["end"]), int(entry["length"])
    if name not in by_digest:
        raise ValueError(f"the document {name} is not in the text")
    spans = [(int(begin), int(stop)) for begin, stop in entry["spans"]]
    edges = [0, *(edge for span in spans for edge in span), end, len(by_digest[name])]
    if edges != sorted(edges):
        raise ValueError(f"the spans of document {name} do not ascend within it")
    return Piece(by_digest[name], end, length), spans
