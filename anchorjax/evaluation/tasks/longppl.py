"""LongPPL (arXiv 2410.23771): perplexity of those tokens only for which the long context matters.

A model, the evaluator, reads each document twice: whole, and in windows in which a token has no more than a short
context before it. With l the whole text before token x and s the short one,

  LSD = log p(x | l) - log p(x | s)      what the long context gains
  LCL = log p(x | l)                     whether the token can be known at all

and x is a key token if LSD > alpha and LCL > beta. LongPPL of a model is exp of its mean -log p(x | l) over key tokens,
all documents together. Between tokenizers key tokens travel as spans of characters.

Unlike the authors' code (the PyPI package longppl): every text and window stands behind a beginning of sequence, of the
evaluator and of the model alike; the mean is over tokens and not over documents; spaces belong to the word behind them,
whatever a tokenizer's offsets leave out; and where there are no key tokens, nothing is computed from none.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tqdm

from anchorjax.data.text import text_file
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import EvaluationError, UsageError
from anchorjax.evaluation import windows
from anchorjax.evaluation.results import Results
from anchorjax.evaluation.tasks.perplexity import perplexity
from anchorjax.evaluation.texts import Chosen, digest
from anchorjax.inference.batching import batches, bucket
from anchorjax.inference.scoring import Scorer

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
        """Of no other piece, in the keys of answers."""
        return f"{digest(self.text)} {self.end}"

    def tokens(self, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """(ids [T], offsets [T, 2]) of the tokens that end within the piece; none is of a text that was cut."""
        ids_T, offsets_T2 = tokenizer.encode_with_offsets(self.text)
        size = int(np.searchsorted(offsets_T2[:, 1], self.end, side="right"))
        return ids_T[:size], offsets_T2[:size]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A model that scores pieces.

    Attributes:
      scorer: gives it, which is loaded only if something is missing.
      step: of its checkpoint.
      mark: of its weights, in the keys of answers.
    """

    scorer: Callable[[], Scorer]
    tokenizer: Tokenizer
    step: int | None
    mark: str

    def nats(self, documents: Sequence[np.ndarray], some: Sequence[Sequence[windows.Window]]) -> list[np.ndarray]:
        """See `windows.score`; every window stands behind the beginning of sequence."""
        return windows.score(self.scorer(), documents, some, [self.tokenizer.bos_id])


def judge(evaluator: Reader, pieces: Sequence[Piece], rule: Rule, results: Results, itself: bool) -> dict[Piece, dict]:
    """{"tokens", "keys", "spans"} of each piece, by the evaluator; those that `results` has are not made again.

    Args:
      itself: the evaluator is the model that is measured; what `measure` needs is found in the same pass.
    """
    keys = {piece: f"keys {evaluator.mark} {piece.name}" for piece in pieces}
    for batch in _read(evaluator, keys, results, "key tokens"):
        found = {}
        for piece, ids_T, offsets_T2, long_T in batch:
            short_T = evaluator.nats([ids_T], [rule.windows(len(ids_T))])[0]
            keys_T = rule.key_tokens(long_T, short_T)
            spans = merge(offsets_T2, keys_T)
            if itself:
                found[_measured(evaluator, piece, spans)] = _sums(long_T, inside(offsets_T2, spans))
            found[keys[piece]] = {"tokens": len(ids_T), "keys": int(keys_T.sum()), "spans": spans}
        results.add_all(found)
    return {piece: results.answers[key] for piece, key in keys.items()}


def _measured(model: Reader, piece: Piece, spans: Sequence[Span]) -> str:
    """The key of a model's sums over a piece: another checkpoint of the evaluator finds other spans."""
    return f"{model.mark} {piece.name} {digest(json.dumps(spans))}"


def measure(model: Reader, spans: Mapping[Piece, Sequence[Span]], results: Results) -> dict[Piece, dict]:
    """{"nats", "tokens", "key_nats", "keys"} of each piece, by the model; key tokens are those inside the spans."""
    keys = {piece: _measured(model, piece, some) for piece, some in spans.items()}
    for batch in _read(model, keys, results, "documents"):
        results.add_all(
            {keys[piece]: _sums(nats_T, inside(offsets_T2, spans[piece])) for piece, _, offsets_T2, nats_T in batch}
        )
    return {piece: results.answers[key] for piece, key in keys.items()}


def _read(
    reader: Reader, keys: Mapping[Piece, str], results: Results, label: str
) -> Iterator[list[tuple[Piece, np.ndarray, np.ndarray, np.ndarray]]]:
    """(piece, ids [T], offsets [T, 2], -log p with all text before it [T]) of those without an answer, by batches."""
    missing = [(piece, *piece.tokens(reader.tokenizer)) for piece, key in keys.items() if key not in results.answers]
    hidden = not missing or not sys.stderr.isatty()
    with tqdm.tqdm(desc=label, total=len(keys), initial=len(keys) - len(missing), disable=hidden) as bar:
        rows = reader.scorer().batch_size if missing else 1
        for some in batches(missing, rows, lambda one: len(one[1]), kind=bucket):
            nats = reader.nats([ids_T for _, ids_T, _ in some], [windows.whole(len(ids_T)) for _, ids_T, _ in some])
            yield [(*one, nats_T) for one, nats_T in zip(some, nats, strict=True)]
            bar.update(len(some))


def _sums(nats_T: np.ndarray, keys_T: np.ndarray) -> dict:
    return {
        "nats": float(nats_T.sum()),
        "tokens": len(nats_T),
        "key_nats": float(nats_T[keys_T].sum()),
        "keys": int(keys_T.sum()),
    }


def summary(sums: Sequence[Mapping]) -> dict:
    """Of some documents: each key token weighs the same, and `longppl` is None if there is none."""
    nats, tokens, key_nats, keys = (sum(one[name] for one in sums) for name in ("nats", "tokens", "key_nats", "keys"))
    return {
        "documents": len(sums),
        "tokens": tokens,
        "key_tokens": keys,
        "key_share": keys / tokens,
        "longppl": perplexity(key_nats / keys) if keys else None,
        "perplexity": perplexity(nats / tokens),
    }


def by_length(sums: Mapping[Piece, Mapping], too_short: Mapping[int, int]) -> dict[int, dict]:
    """`summary` of the pieces of each length, and how many documents were `too_short` for it, where that is known."""
    return {
        length: {"too_short": too_short.get(length)}
        | summary([one for piece, one in sums.items() if piece.length == length])
        for length in sorted({piece.length for piece in sums})
    }


def to_json(judged: Mapping[Piece, Mapping]) -> list[dict]:
    """For a file of key tokens; `from_json` reads it."""
    return [
        {"document": digest(piece.text), "end": piece.end, "length": piece.length}
        | {name: found[name] for name in ("tokens", "keys", "spans")}
        for piece, found in judged.items()
    ]


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


def table(by_length: Mapping[int, Mapping]) -> str:
    """A line for each length of what the function `by_length` finds."""
    heads = ("length", "documents", "too short", "tokens", "key tokens", "percent", "LongPPL", "perplexity")
    lines = ["".join(f"{head:>12}" for head in heads)]
    for length, found in by_length.items():
        cells = [length, *(found[name] for name in ("documents", "too_short", "tokens", "key_tokens"))]
        cells += [100 * found["key_share"], found["longppl"], found["perplexity"]]
        lines.append("".join(f"{_cell(cell):>12}" for cell in cells))
    empty = [f"{length:,}" for length, found in by_length.items() if not found["key_tokens"]]
    if empty:
        lines.append(f"no key tokens at length {', '.join(empty)}: LongPPL is not defined there")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
