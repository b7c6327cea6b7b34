"""Entropy of attention by layer, and the probe of biased rounding, on a run or a Hugging Face directory.

    anchorjax evaluate attention_weights --hf DIR --tokens=4096
    anchorjax evaluate attention_weights --hf DIR --dtype=bfloat16 --tokens=1024 --measures=rounding

Rows are the row's first token and text: one document under the mask full, documents of --document-tokens under
intra_doc and anchor. Entropy is in nats, by visible keys (entropy.py); rounding is that of arXiv 2510.04212
(rounding.py). Writes attention_weights.json, and pictures of the entropy. Exit codes: 0 done, 1 failed, 2 bad input.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from anchorjax import processes
from anchorjax.errors import EvaluationError, UsageError
from anchorjax.evaluation import options
from anchorjax.evaluation.tasks.ruler.haystack import Essays, open_essays
from anchorjax.experiments.attention_weights import entropy, rounding
from anchorjax.experiments.attention_weights.capture import Row, capture
from anchorjax.experiments.rope_precision.rope_precision import excerpt
from anchorjax.files import write_atomically
from anchorjax.inference import language_model
from anchorjax.inference.language_model import Description, LanguageModel
from anchorjax.masks import anchors_of
from anchorjax.pages import figures
from anchorjax.pages.figures import Series
from anchorjax.parsing import Parser
from anchorjax.types import MASKS

MEASURES = ("entropy", "rounding")
DRAWN = 6  # layers in the picture by visible keys, at equal distances


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(options.program("attention_weights"), __doc__)
    options.add_model(parser)
    parser.add_argument("--measures", type=_names, default=("entropy",), help=f"of {', '.join(MEASURES)}")
    parser.add_argument("--masks", type=_names, default=("full", "anchor"), help=f"of {', '.join(MASKS)}")
    parser.add_argument("--tokens", type=options.tokens, default=1024, help="of a row")
    parser.add_argument("--document-tokens", type=options.tokens, default=256, help="of documents, but for full")
    parser.add_argument("--samples", type=options.positive, default=1, help="rows")
    options.add_texts(parser)
    return options.run(parser, argv, lambda arguments: evaluate(arguments, options.as_typed("attention_weights", argv)))


def evaluate(arguments: argparse.Namespace, command: str) -> None:
    for option, chosen, known in (("measures", arguments.measures, MEASURES), ("masks", arguments.masks, MASKS)):
        if unknown := [name for name in chosen if name not in known]:
            raise UsageError(f"--{option}={unknown[0]} is not allowed: it must be of {', '.join(known)}")
    model = options.description(arguments)
    model.check_scored()
    options.check_lengths([arguments.tokens], model)
    text = open_essays(arguments.essays)
    (step,) = options.steps(arguments, model)
    directory = options.out_directory(arguments, model, "attention_weights")
    loaded = language_model.load(model, step=step)
    found = {}
    for mask in arguments.masks:
        found[mask] = measure(loaded, list(rows(arguments, model, text, mask)), arguments.measures)
    asked = {name: getattr(arguments, name) for name in ("tokens", "document_tokens", "samples", "seed")}
    result = {"command": command, "step": step, "dtype": model.model.compute_dtype, **asked, "masks": found}
    if processes.is_main():
        write(result, directory)
    print(table(result))
    print(f"written to {directory / 'attention_weights.json'}")


def rows(arguments: argparse.Namespace, model: Description, text: Essays, mask: str) -> Iterator[Row]:
    """Yields rows of BOS and text. Raises EvaluationError if documents do not fit."""
    T = arguments.tokens
    size = T - 1 if mask == "full" else arguments.document_tokens
    if not 1 <= size < T:
        raise EvaluationError(f"documents of {size} tokens do not fit into a row of {T}")
    for sample in range(arguments.samples):
        count = -(-(T - 1) // size)
        documents = [excerpt(text, model.tokenizer, size, f"{arguments.seed} {sample} {n}") for n in range(count)]
        tokens_T = np.concatenate([[model.tokenizer.bos_id], *documents])[:T].astype(np.int32)
        index_T = np.arange(T)
        segments_T = np.where((index_T == 0) | (mask == "full"), 0, (index_T - 1) // size + 1)
        yield Row(tokens_T, segments_T.astype(np.int32), anchors_of(mask))


def measure(model: LanguageModel, some: Sequence[Row], measures: Sequence[str]) -> list[dict]:
    """Returns what is found of each layer, over all rows."""
    count = model.description.model.num_layers
    spreads: list[list[entropy.Spread]] = [[] for _ in range(count)]
    counts = [rounding.Counts()] * count
    for row in some:
        for number, layer in enumerate(capture(model, row)):
            if "entropy" in measures:
                spreads[number].append(entropy.spread(layer))
            if "rounding" in measures:
                counts[number] += rounding.probe(layer)
    found: list[dict] = [{} for _ in range(count)]
    for one, of_layer, counted in zip(found, spreads, counts, strict=True):
        if "entropy" in measures:
            one["entropy"] = entropy.by_visible(of_layer)
        if "rounding" in measures:
            one["rounding"] = counted.result()
    return found


def write(result: dict, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "attention_weights.json", json.dumps(result) + "\n")
    for name, png in pictures(result):
        (directory / name).write_bytes(png)


def pictures(result: dict) -> Iterator[tuple[str, bytes]]:
    """(name of the file, PNG): relative entropy and weight of the first key by layer, and entropy by visible keys."""
    found = {mask: layers for mask, layers in result["masks"].items() if "entropy" in layers[0]}
    if not found:
        return
    for name, label in (("relative", "entropy / log(visible keys)"), ("first", "weight of the first key")):
        series = [
            Series(mask, range(len(layers)), [mean(one["entropy"], name) for one in layers])
            for mask, layers in found.items()
        ]
        yield f"{name}.png", figures.png(figures.lines(series, x_label="layer", y_label=label, y_range=(0, 1)))
    for mask, layers in found.items():
        series = []
        for number in sorted({round(n) for n in np.linspace(0, len(layers) - 1, DRAWN)}):
            by_head_NM = layers[number]["entropy"]["entropy"]
            kept = [m for m, value in enumerate(by_head_NM[0]) if value is not None]
            means = [float(np.mean([row[m] for row in by_head_NM])) for m in kept]
            series.append(Series(f"layer {number}", [2**m for m in kept], means))
        drawn = figures.lines(series, x_label="visible keys, from", y_label="entropy (nats)", x_ticks=series[0].x)
        yield f"entropy-{mask}.png", figures.png(drawn)


def mean(found: dict, name: str) -> float:
    """Returns the mean over the heads and queries of a layer; queries that see one key have no relative entropy."""
    weight_M = np.array(found["queries"], float)
    if name == "relative":
        weight_M[0] = 0  # the bucket of one key
    values_NM = np.array([[value or 0.0 for value in row] for row in found[name]])
    return float((values_NM.mean(0) * weight_M).sum() / max(weight_M.sum(), 1))


def table(result: dict) -> str:
    """One line for each mask and layer."""
    lines = []
    for mask, layers in result["masks"].items():
        lines.append(f"{mask}:")
        for number, one in enumerate(layers):
            cells = [f"  layer {number:>3}"]
            if found := one.get("entropy"):
                numbers = (mean(found, name) for name in ("entropy", "relative", "first"))
                cells.append("entropy {:7.4f} nats, {:.3f} of log(visible), first key {:.3f}".format(*numbers))
            if found := one.get("rounding"):
                names = ("shared_bf16", "shared_fp32", "ones", "first")
                shares = ", ".join(f"{name} {found[name]:.3%}" for name in names)
                of = found["error_of_shared"]
                errors = ", ".join(f"{name} {'-' if v is None else format(v, '+.3f')}" for name, v in of.items())
                cells.append(f"{shares}; mean error in ulps of queries that share one: {errors}")
            lines.append("  ".join(cells))
    return "\n".join(lines)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))
