"""How far rounding moves attention when positions are shifted.

    anchorjax evaluate rope_precision --hf DIR --samples=5

Section 2 of the AnchorAttention paper (arXiv 2411.13476) on a checkpoint and on random-init baselines: the deviation of
attention weights (Eq. 4) and of the first key's logits (Eq. 5) by shift, by key, by length of the row and by layout of
its documents, for several precisions. Writes rope_precision.json, pictures, and what was found of every sample
(answers.jsonl); rerun the command to resume. Exit codes: 0 done, 1 failed, 2 bad input.
"""

import argparse
import functools
from collections.abc import Sequence

from anchorjax import processes
from anchorjax.errors import UsageError
from anchorjax.evaluation import options
from anchorjax.evaluation.record import Record
from anchorjax.evaluation.tasks.ruler.haystack import open_essays
from anchorjax.experiments.rope_precision import random_init, rope_figures, rope_precision, rotation
from anchorjax.experiments.rope_precision.rope_precision import EXPERIMENTS, PAPER_SHIFTS, PRECISIONS, WEIGHTS, Plan
from anchorjax.inference import language_model
from anchorjax.inference.language_model import Description, LanguageModel
from anchorjax.pages import figures
from anchorjax.parsing import Parser

POSITIONS = [2**i for i in range(12, 21)]  # of the picture of tables: 4K to 1M
DEFAULT_PRECISIONS = (*rotation.PRECISIONS, "random-fp32", "random-bf16")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(options.program("rope_precision"), __doc__)
    options.add_model(parser)
    parser.set_defaults(batch_size=8)
    parser.add_argument("--experiments", type=_names, default=EXPERIMENTS, help=f"of {', '.join(EXPERIMENTS)}")
    known = f"of {', '.join(PRECISIONS)}"
    parser.add_argument("--precisions", "--variants", type=_names, default=DEFAULT_PRECISIONS, help=known)
    shifts = functools.partial(options.lengths, least=0)
    far = [2**16, 2**17, 2**20]
    parser.add_argument("--shifts", type=shifts, default=[*PAPER_SHIFTS, *far], help="of positions: 0,2,16,64K,1M")
    parser.add_argument("--reference", type=shifts, default=[16], help="the shift that others are compared with")
    parser.add_argument("--tokens", type=options.tokens, default=512, help="of the rows that are shifted")
    lengths = [2**i for i in range(6, 12)]
    parser.add_argument("--lengths", type=options.lengths, default=lengths, help="of rows: 64,1K,2K")
    parser.add_argument("--document-tokens", type=options.tokens, default=256, help="of documents in layouts")
    parser.add_argument("--samples", type=options.positive, default=5, help="texts")
    options.add_texts(parser)
    return options.run(parser, argv, lambda arguments: evaluate(arguments, options.as_typed("rope_precision", argv)))


def evaluate(arguments: argparse.Namespace, command: str) -> None:
    if arguments.dtype != "auto":
        raise UsageError(f"--dtype={arguments.dtype} is not allowed: --precisions says what is computed in which dtype")
    if len(arguments.reference) != 1:
        raise UsageError(f"--reference={arguments.reference} is not allowed: it is one shift")
    arguments.dtype = "float32"  # of weights at rest
    model = options.description(arguments)
    if model.attention.logit_scale != "none":
        raise UsageError(
            f"{model.directory} was trained with attention.logit_scale={model.attention.logit_scale}: "
            "rope_precision measures models whose logits are not scaled"
        )
    model.check_scored()
    options.check_lengths(sorted([*arguments.lengths, arguments.tokens]), model)
    plan = Plan(
        tuple(arguments.experiments),
        tuple(arguments.precisions),
        tuple(arguments.shifts),
        arguments.reference[0],
        arguments.tokens,
        tuple(arguments.lengths),
        arguments.document_tokens,
        arguments.samples,
        arguments.seed,
    )
    text = open_essays(arguments.essays)
    passes = list(rope_precision.passes(plan, model, text, arguments.batch_size))
    # A pass of other rows may differ in the last bits.
    asked = plan.asked() | {"text": text.material, "batch_size": arguments.batch_size}
    asked |= options.material(essays=arguments.essays)
    (step,) = options.steps(arguments, model)
    request, load = options.request(model, **asked), functools.partial(_load, model, step, plan.seed)
    weights_id = model.weights_id(step)
    directory = options.out_directory(arguments, model, "rope_precision")
    with Record(directory, request, lambda: options.earlier_request(request, model)) as record:
        record.begin(command, {"weights": weights_id}, [])
        found = rope_precision.run(plan, passes, weights_id, load, record)
        result = rope_precision.summary(passes, weights_id, found)
        head_dim = model.model.head_dim
        errors = processes.value_of_main(lambda: rotation.table_errors(model.rope, head_dim, POSITIONS))
        result["tables"] = {"positions": POSITIONS, "errors": errors}
        told = {"context": model.context, "step": step, "weights": weights_id, "commands": record.commands}
        path = record.write("rope_precision.json", request | told | result)
        for name, png in rope_figures.pictures(plan, result):
            record.write(name, png)
    print(table(result))
    if left_out := list(result.get("shifts") or result.get("lengths") or ())[figures.MOST :]:
        print(
            f"no picture but those of layouts has more than {figures.MOST} precisions; left out: {', '.join(left_out)}"
        )
    print(f"written to {path}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def _load(model: Description, step: int | None, seed: int, weights: str) -> LanguageModel:
    spread = WEIGHTS[weights]
    return random_init.draw(model, seed=seed, spread=spread) if spread else language_model.load(model, step=step)


def table(result: dict) -> str:
    """Eq. 4 of the longest rows, of all keys and of the first, and Eq. 5, by experiment and precision."""
    lines = [f"{'':<10}{'precision':<20}{'shift':>9}{'attention':>13}{'first key':>11}{'logit':>11}"]
    for experiment, precisions in result.items():
        for precision, labels in precisions.items() if experiment != "tables" else ():
            label = max(labels, key=int)
            one = labels[label]
            whole, first = (one["attention"][group][-1] for group in ("all", "first"))
            share = f"{first / whole:.1%}" if whole else "-"
            cells = f"{whole:>13.4g}{share:>11}{one['logit'][-1]:>11.4g}"
            lines.append(f"{experiment:<10}{precision:<20}{int(label):>9,}{cells}")
    return "\n".join(lines)
