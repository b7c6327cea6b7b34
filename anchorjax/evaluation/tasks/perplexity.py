"""Perplexity of documents by length: whole, of the last tokens, by place, and in sliding windows.

A row is a document behind the beginning of sequence, which plays the anchor in models that have one.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tqdm

from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import UsageError
from anchorjax.evaluation import windows
from anchorjax.evaluation.results import Results
from anchorjax.evaluation.texts import Chosen, digest
from anchorjax.inference.batching import batches
from anchorjax.inference.scoring import Scorer
from anchorjax.pages import figures
from anchorjax.training.evaluate import bucket_edges, loss_by_bucket


def perplexity(loss: float) -> float:
    """Of a loss in nats; infinite where floats end."""
    return math.inf if loss >= 700 else math.exp(loss)


def bits_per_byte(nats: float, num_bytes: int) -> float:
    return nats / math.log(2) / num_bytes


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is asked about a row.

    Attributes:
      last: so many tokens at its end are also reported alone; 0: none.
      window: tokens that the model reads at once, the beginning of sequence included; 0: the whole row.
      stride: tokens from one window to the next; each but the first `window` tokens of a document is scored with at
        least `window - stride` tokens before it.

    Raises:
      UsageError: numbers that do not go together.
    """

    last: int = 0
    window: int = 0
    stride: int = 0

    def __post_init__(self):
        if self.last < 0:
            raise UsageError(f"--last={self.last} is not allowed: it must be 0 or more")
        if self.window < 0 or self.window == 1:
            raise UsageError(f"--window={self.window} is not allowed: it must be 2 or more; 0 reads whole rows")
        if self.stride and not self.window:
            raise UsageError("--stride needs --window: whole rows do not slide")
        if self.window and not 0 < self.stride < self.window:
            raise UsageError(f"--stride={self.stride} is not allowed: it must be from 1 to {self.window - 1}")

    def windows(self, size: int) -> list[windows.Window]:
        """Over `size` tokens behind the beginning of sequence."""
        return windows.sliding(size, self.window - 1, self.stride) if self.window else windows.whole(size)


def score(
    scorer: Callable[[], Scorer],
    rows: Mapping[int, Sequence[Chosen]],
    measure: Measure,
    tokenizer: Tokenizer,
    mark: str,
    results: Results,
) -> dict[int, list[dict]]:
    """The sums of each document by length; those that `results` has are not made again.

    Args:
      scorer: gives the model, which is loaded only if something is missing.
      mark: of the weights, in the keys of answers.
    """
    keys_by_length = {length: [f"{mark} {length} {digest(one.ids_T)}" for one in some] for length, some in rows.items()}
    todo = {
        key: (length, one)
        for length, keys in keys_by_length.items()
        for key, one in zip(keys, rows[length], strict=True)
    }
    missing = results.missing(todo)
    hidden = not missing or not sys.stderr.isatty()
    with tqdm.tqdm(total=len(todo), initial=len(todo) - len(missing), unit="document", disable=hidden) as bar:
        # Documents in windows come one by one, so that the windows that are batched are always the same.
        together = scorer().batch_size if missing and not measure.window else 1
        for keys in batches(missing, together, lambda key: todo[key][0], kind=int):
            documents = [todo[key][1].ids_T for key in keys]
            some = [measure.windows(len(ids_T)) for ids_T in documents]
            nats = windows.score(scorer(), documents, some, [tokenizer.bos_id])
            sums = (
                _sums(nats_T, tokenizer.token_bytes_V[ids_T], todo[key][0], measure.last)
                for key, ids_T, nats_T in zip(keys, documents, nats, strict=True)
            )
            results.add_all(dict(zip(keys, sums, strict=True)))
            bar.update(len(keys))
    return {length: [results.answers[key] for key in keys] for length, keys in keys_by_length.items()}


def _sums(nats_T: np.ndarray, bytes_T: np.ndarray, length: int, last: int) -> dict:
    """What `summary` adds up: token t has t tokens and the beginning of sequence before it."""
    edges = bucket_edges(length)
    bucket_T = np.searchsorted(edges, np.arange(len(nats_T)), side="right")
    return {
        "nats": np.bincount(bucket_T, nats_T, len(edges)).tolist(),
        "tokens": np.bincount(bucket_T, minlength=len(edges)).tolist(),
        "bytes": int(bytes_T.sum()),
        "last_nats": float(nats_T[len(nats_T) - last :].sum()),
    }


def summary(sums: Sequence[Mapping], length: int, last: int) -> dict:
    """Of the documents of one length: every token weighs the same."""
    nats_E, tokens_E = (np.sum([one[name] for one in sums], 0) for name in ("nats", "tokens"))
    loss = float(nats_E.sum() / tokens_E.sum())
    found = {
        "documents": len(sums),
        "targets": int(tokens_E.sum()),
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": bits_per_byte(float(nats_E.sum()), sum(one["bytes"] for one in sums)),
    }
    if last:
        of_last = sum(one["last_nats"] for one in sums) / (last * len(sums))
        found |= {"last_loss": of_last, "last_perplexity": perplexity(of_last)}
    return found | {"by_position": loss_by_bucket(bucket_edges(length), nats_E, tokens_E)}


def table(by_length: Mapping[int, Mapping], last: int) -> str:
    heads = ["length", "documents", "too short", "loss", "perplexity", "bits per byte"]
    names = ["documents", "too_short", "loss", "perplexity", "bits_per_byte"]
    if last:
        heads, names = [*heads, f"last {last:,}"], [*names, "last_perplexity"]
    lines = ["".join(f"{head:>14}" for head in heads)]
    for length, found in by_length.items():
        cells = [length, *(found[name] for name in names)]
        lines.append("".join(f"{cell:>14,.4f}" if isinstance(cell, float) else f"{cell:>14,}" for cell in cells))
    return "\n".join([*lines, "", *bucket_lines(length_columns(by_length))])


def length_columns(by_length: Mapping[int, Mapping]) -> dict[str, Mapping[str, float]]:
    return {f"loss of {length:,}": found["by_position"] for length, found in by_length.items()}


def packed_table(result: Mapping) -> str:
    """Of what `held_out.evaluate` finds."""
    head = (
        f"step {result['step']}: loss {result['loss']:.4f} nats per target, perplexity {result['perplexity']:.3f}, "
        f"{result['bits_per_byte']:.4f} bits per byte, {result['targets']:,} targets"
    )
    return "\n".join([head, "", *bucket_lines(packed_columns(result))])


def packed_columns(result: Mapping) -> dict[str, Mapping[str, float]]:
    found = {
        "loss by place in row": result["by_position"],
        "loss by place in document": result.get("by_context"),
    }
    return {name: losses for name, losses in found.items() if losses is not None}


def bucket_lines(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each bucket of places, a column for each name."""
    lines = [f"{'tokens before':<18}" + "".join(f"{name:<23}" for name in columns)]
    for bucket in dict.fromkeys(bucket for losses in columns.values() for bucket in losses):
        cells = ("-" if bucket not in losses else f"{losses[bucket]:.4f}" for losses in columns.values())
        lines.append(f"{bucket:<18}" + "".join(f"{cell:<23}" for cell in cells))
    return [line.rstrip() for line in lines]


def picture(columns: Mapping[str, Mapping[str, float]]) -> bytes:
    """PNG of the same numbers as `bucket_lines`: each bucket at its upper edge."""
    series = [
        figures.Series(name, [int(bucket.split("-")[1]) for bucket in losses], list(losses.values()))
        for name, losses in columns.items()
    ]
    figure = figures.lines(
        series,
        x_label="tokens before (up to)",
        y_label="loss (nats per token)",
        x_ticks=sorted({x for one in series for x in one.x}),
        name_tick=lambda x: f"{x:g}" if x < 1024 else f"{x / 1024:g}K",
    )
    return figures.png(figure)
