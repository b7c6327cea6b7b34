"""Held-out loss of a run, or perplexity of texts by length, for a run or a Hugging Face directory.

    anchorjax evaluate perplexity --workdir=runs/quickstart
    anchorjax evaluate perplexity --hf DIR --lengths=1K,4K --last=512
    anchorjax evaluate perplexity --workdir DIR --text books.jsonl --lengths=16K --window=4K --stride=1K

Without --text a run's validation split is scored packed exactly as in training (anchor, mask, positions), with the
newest checkpoint or that of --step. The last line is one JSON object: `rows` (as asked), `loss` (nats per target),
`bits_per_byte`, `perplexity`, `targets`, `step`, `by_position` (loss by place in the row) and `by_context` (loss by
tokens of the document before it in the row; not under the `full` mask).

With --text, and always for --hf, whole documents are scored. BOS precedes each and plays the anchor in models that have
one. Each document is cut to each of --lengths; those that are shorter are left out and counted. Both write
perplexity.json, a picture of the loss by place, and what each document or batch gave (answers.jsonl); rerun the command
to resume. Exit codes: 0 done, 1 failed, 2 bad input.
"""

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anchorjax import processes
from anchorjax.errors import UsageError
from anchorjax.evaluation import options, runner, texts, windows
from anchorjax.evaluation.record import Cell
from anchorjax.evaluation.task import Example, Reading
from anchorjax.inference.language_model import Description
from anchorjax.pages import figures
from anchorjax.parsing import Parser
from anchorjax.training.evaluate import bucket_edges, loss_by_bucket

LENGTH, SAMPLES = 4096, 20
_PACKED = ("workdir", "step", "rows", "out")  # the only options without --text


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinite where floats end."""
    return math.inf if loss >= 700 else math.exp(loss)


def bits_per_byte(nats: float, num_bytes: int) -> float:
    return nats / math.log(2) / num_bytes


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is measured of a row.

    Attributes:
      last: so many tokens at its end are also reported alone; 0: none.
      window: tokens that the model reads at once, the BOS included; 0: the whole row.
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
        """Over `size` tokens behind the BOS."""
        return windows.sliding(size, self.window - 1, self.stride) if self.window else windows.whole(size)


def _sums(nats_T: np.ndarray, bytes_T: np.ndarray, length: int, last: int) -> dict:
    """What `summary` adds up: token t has t tokens and the BOS before it."""
    edges = bucket_edges(length)
    bucket_T = np.searchsorted(edges, np.arange(len(nats_T)), side="right")
    return {
        "nats": np.bincount(bucket_T, nats_T, len(edges)).tolist(),
        "tokens": np.bincount(bucket_T, minlength=len(edges)).tolist(),
        "bytes": int(bytes_T.sum()),
        "last_nats": float(nats_T[len(nats_T) - last :].sum()),
    }


def summary(sums: Sequence[Mapping], length: int, last: int) -> dict:
    """Sums up the documents of one length: every token weighs the same."""
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


def table(by_length: Mapping[str, Mapping], last: int) -> str:
    heads = ["length", "documents", "too short", "loss", "perplexity", "bits per byte"]
    names = ["documents", "too_short", "loss", "perplexity", "bits_per_byte"]
    if last:
        heads, names = [*heads, f"last {last:,}"], [*names, "last_perplexity"]
    lines = ["".join(f"{head:>14}" for head in heads)]
    for length, found in by_length.items():
        cells = [int(length), *(found[name] for name in names)]
        lines.append("".join(f"{cell:>14,.4f}" if isinstance(cell, float) else f"{cell:>14,}" for cell in cells))
    return "\n".join([*lines, "", *bucket_lines(length_columns(by_length))])


def length_columns(by_length: Mapping[str, Mapping]) -> dict[str, Mapping[str, float]]:
    return {f"loss of {int(length):,}": found["by_position"] for length, found in by_length.items()}


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


class Perplexity:
    """Documents of each length; a length is a cell of the record."""

    name, kind = "perplexity", "score"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        options.add_model(parser)
        options.add_documents(parser, LENGTH, SAMPLES)
        parser.add_argument(
            "--last", type=options.tokens, default=0, help="tokens at the end whose perplexity is also given"
        )
        parser.add_argument("--window", type=options.tokens, default=0, help="tokens read at once; default: whole rows")
        parser.add_argument(
            "--stride",
            type=options.tokens,
            default=0,
            help="tokens from one window to the next; default: half of --window",
        )
        parser.add_argument(
            "--rows", type=options.positive_or_0, default=0, help="without --text: rows to score; 0 is the whole split"
        )

    def __init__(self, arguments: argparse.Namespace, model: Description):
        options.steps(arguments, model)
        self._measure = Measure(arguments.last, arguments.window, arguments.stride or arguments.window // 2)
        lengths = arguments.lengths or [min(LENGTH, model.context)]
        self._check(lengths, model)
        text = arguments.text or texts.SHIPPED
        documents = texts.Documents(text, texts.read(text, arguments.text_key), model.tokenizer, arguments.seed)
        self._chosen = {length: documents.choose(length, arguments.samples) for length in lengths}
        self._tokenizer = model.tokenizer
        self.request = {"text": texts.absolute(text), **dataclasses.asdict(self._measure)}
        self.asked = {name: getattr(arguments, name) for name in ("text_key", "samples", "seed")}

    def _check(self, lengths: list[int], model: Description) -> None:
        """Raises UsageError for what the model or the documents cannot give."""
        window, last = self._measure.window, self._measure.last
        if window > model.context:
            raise UsageError(
                f"--window={window} is more than the model's context of {model.context}; --context=N allows more"
            )
        if not window:
            options.check_lengths(lengths, model)
        if lengths[0] <= max(1, last):
            raise UsageError(f"--lengths: {lengths[0]} leaves no room for --last={last} behind the first token")

    def examples(self) -> list[Example]:
        def reading(one: texts.Chosen) -> Reading:
            return Reading(one.ids_T, [self._measure.windows(len(one.ids_T))])

        return [
            Example("text", length, index, lambda one=one: reading(one), length, length, texts.digest(one.ids_T))
            for length, (some, _) in self._chosen.items()
            for index, one in enumerate(some)
        ]

    def facts(self, task: str, length: int) -> dict[str, Any]:
        return {"too_short": self._chosen[length][1]}

    def score(self, example: Example, made: Reading, output: Sequence[np.ndarray]) -> dict[str, Any]:
        """The mean loss, and what `summary` adds up."""
        bytes_T = self._tokenizer.token_bytes_V[made.ids_T]
        sums = _sums(output[0], bytes_T, example.length, self._measure.last)
        return {"score": sum(sums["nats"]) / sum(sums["tokens"])} | sums

    def tables(self, cells: Sequence[Cell]) -> dict[str, Any]:
        last = self._measure.last
        cells = sorted(cells, key=lambda cell: cell.length)
        return {"lengths": {str(one.length): one.facts | summary(one.lines[0], one.length, last) for one in cells}}

    def figures(self, result: Mapping[str, Any]) -> dict[str, bytes]:
        return {"perplexity.png": picture(length_columns(result["lengths"]))}

    def text(self, result: Mapping[str, Any]) -> str:
        return table(result["lengths"], self._measure.last)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(options.program("perplexity"), __doc__)
    Perplexity.add_options(parser)
    return options.run(parser, argv, lambda arguments: _run(parser, arguments, options.as_typed("perplexity", argv)))


def _run(parser: Parser, arguments: argparse.Namespace, command: str) -> None:
    from anchorjax.evaluation.tasks import held_out  # which reports through this module

    if arguments.hf or arguments.text or not arguments.workdir:
        options.refuse(parser, arguments, ["rows"], "is for --workdir without --text; --samples is for documents")
        model = options.description(arguments)
        with runner.alive(lambda: "perplexity: preparing"):
            task = processes.main_first(lambda: Perplexity(arguments, model))
        return runner.evaluate(task, model, arguments, command, "perplexity-text" if model.is_run else "perplexity")
    others = [name for name in vars(arguments) if name not in _PACKED]
    options.refuse(parser, arguments, others, "is for --text: without it the run's own split is scored")
    held_out.evaluate(arguments, command)
