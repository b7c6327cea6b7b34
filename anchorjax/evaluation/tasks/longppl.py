"""LongPPL, perplexity of the tokens that need a long context.

    anchorjax evaluate longppl --hf DIR --text books.jsonl --lengths=32K

Key tokens are found by an evaluator (--evaluator-hf or --evaluator-workdir), come from a file that an earlier run wrote
(--key-tokens), or are the model's own. The first --lengths tokens of the evaluator are taken of each document, by all
models the same characters; the text that ships has none as long as the default of 32K, and is for trying with less.
Only one model is in memory at a time. Writes longppl.json (LongPPL, perplexity, share of key tokens), key_tokens.json,
a picture, and every document's answer (answers.jsonl); rerun the command to resume. Exit codes: 0 done, 1 failed,
2 bad input.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anchorjax import processes
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import UsageError
from anchorjax.evaluation import options, runner, texts, windows
from anchorjax.evaluation.record import Cell, Record
from anchorjax.evaluation.task import Example, Reading
from anchorjax.evaluation.tasks.key_tokens import Piece, Rule, Span, from_json, inside, merge, summary, sums_of
from anchorjax.evaluation.texts import digest
from anchorjax.inference import language_model
from anchorjax.inference.language_model import Description
from anchorjax.pages import figures
from anchorjax.parsing import Parser, on_disk

LENGTH, SAMPLES = 32768, 50  # as the paper has them
RULE = ("short_context", "stride", "alpha", "beta")
CHOICE = ("lengths", "samples", "seed", "shortest", "evaluator_hf", "evaluator_workdir", "evaluator_context")


@dataclasses.dataclass(frozen=True, eq=False)
class _Read(Reading):
    """A piece to score, with the characters [T, 2] of its tokens."""

    offsets_T2: np.ndarray


def _reading(piece: Piece, tokenizer: Tokenizer, rule: Rule | None) -> _Read:
    """Whole, and with a rule also in short contexts."""
    ids_T, offsets_T2 = piece.tokens(tokenizer)
    short = [rule.windows(len(ids_T))] if rule else []
    return _Read(ids_T, [windows.whole(len(ids_T)), *short], offsets_T2)


@dataclasses.dataclass(frozen=True, eq=False)
class KeyTokens:
    """The evaluator finds the key tokens of pieces; its own sums over them come with it."""

    pieces: Sequence[Piece]
    rule: Rule
    tokenizer: Tokenizer
    too_short: Mapping[int, int] = dataclasses.field(default_factory=dict)
    name, kind = "key_tokens", "score"

    def examples(self) -> list[Example]:
        numbers = _numbers(self.pieces)
        return [
            Example(
                self.name,
                piece.length,
                numbers[piece],
                lambda piece=piece: _reading(piece, self.tokenizer, self.rule),
                None,
                piece.length,
                piece.name,
            )
            for piece in self.pieces
        ]

    def facts(self, task: str, length: int) -> dict[str, Any]:
        return {"too_short": self.too_short.get(length)}

    def score(self, example: Example, made: _Read, output: Sequence[np.ndarray]) -> dict[str, Any]:
        """The share of key tokens, and where they are."""
        long_T, short_T = output
        keys_T = self.rule.key_tokens(long_T, short_T)
        spans = merge(made.offsets_T2, keys_T)
        sums = sums_of(long_T, inside(made.offsets_T2, spans))
        found = {"document": example.id.split()[0], "end": int(example.id.split()[1]), "tokens": len(made.ids_T)}
        return {
            "score": int(keys_T.sum()) / len(keys_T),
            **found,
            "keys": int(keys_T.sum()),
            "spans": spans,
            "sums": sums,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class LongPPL:
    """A model's perplexity over the key tokens of pieces."""

    spans: Mapping[Piece, Sequence[Span]]
    tokenizer: Tokenizer
    name, kind = "longppl", "score"

    def examples(self) -> list[Example]:
        numbers = _numbers(self.spans)
        return [
            Example(
                self.name,
                piece.length,
                numbers[piece],
                lambda piece=piece: _reading(piece, self.tokenizer, None),
                tuple(map(tuple, spans)),
                piece.length,
                f"{piece.name} {digest(json.dumps(spans))}",
            )
            for piece, spans in self.spans.items()
        ]

    def score(self, example: Example, made: _Read, output: Sequence[np.ndarray]) -> dict[str, Any]:
        sums = sums_of(output[0], inside(made.offsets_T2, example.how))
        return {"score": sums["key_nats"] / sums["keys"] if sums["keys"] else None, "sums": sums}

    def tables(self, cells: Sequence[Cell]) -> dict[str, Any]:
        cells = sorted(cells, key=lambda cell: cell.length)
        return {
            "lengths": {str(one.length): one.facts | summary([line["sums"] for line in one.lines[0]]) for one in cells}
        }

    def figures(self, result: Mapping[str, Any]) -> dict[str, bytes]:
        """LongPPL and perplexity by length; a length without a key token has no LongPPL."""
        lengths = result["lengths"]
        series = []
        for label, name in (("LongPPL", "longppl"), ("perplexity", "perplexity")):
            points = {int(length): row[name] for length, row in lengths.items() if row[name] is not None}
            if points:
                series.append(figures.Series(label, list(points), list(points.values())))
        ticks = {"x_ticks": list(map(int, lengths)), "name_tick": figures.name_length}
        drawn = figures.lines(series, x_label="tokens", y_label="LongPPL and perplexity", log_y=True, **ticks)
        return {"longppl.png": figures.png(drawn)}

    def text(self, result: Mapping[str, Any]) -> str:
        return table(result["lengths"])


def _numbers(pieces: Sequence[Piece]) -> dict[Piece, int]:
    """The index of each piece among those of its length."""
    counts: dict[int, int] = {}
    found = {}
    for piece in pieces:
        found[piece] = counts.get(piece.length, 0)
        counts[piece.length] = found[piece] + 1
    return found


def main(argv: Sequence[str] | None = None) -> int:
    rule = Rule()
    parser = Parser(options.program("longppl"), __doc__)
    options.add_model(parser)
    options.add_documents(parser, LENGTH, SAMPLES)
    parser.add_argument("--shortest", type=options.tokens, help="tokens of the documents to take; default: --lengths")
    parser.add_argument(
        "--evaluator-workdir", type=on_disk, help="training run of the evaluator, which finds the key tokens"
    )
    parser.add_argument(
        "--evaluator-hf", type=on_disk, help="Hugging Face directory of the evaluator; default: the model"
    )
    parser.add_argument("--evaluator-context", type=options.tokens_or_0, default=0, help="--context of the evaluator")
    parser.add_argument(
        "--key-tokens", type=on_disk, help="key_tokens.json of an earlier run, in place of an evaluator"
    )
    parser.add_argument(
        "--short-context", type=options.tokens, default=rule.context, help="least tokens of a short context"
    )
    parser.add_argument("--stride", type=options.tokens, default=rule.stride, help="tokens that share a short context")
    parser.add_argument(
        "--alpha", type=options.number, default=rule.alpha, help="least gain by the long context, in nats"
    )
    parser.add_argument(
        "--beta", type=options.number, default=rule.beta, help="least log-probability in the long context"
    )
    return options.run(parser, argv, lambda arguments: _run(parser, arguments, options.as_typed("longppl", argv)))


def _run(parser: Parser, arguments: argparse.Namespace, command: str) -> None:
    model = options.description(arguments)
    (step,) = options.steps(arguments, model)
    text = arguments.text or texts.SHIPPED
    if arguments.key_tokens:
        options.refuse(parser, arguments, RULE + CHOICE, "does not go with --key-tokens, which was made with its own")
        asked = {"key_tokens_file": options.absolute(arguments.key_tokens)}
        spans, made = from_json(arguments.key_tokens, texts.read(text, arguments.text_key))
        judge, evaluator, pieces = None, None, list(spans)
    else:
        evaluator = processes.together(lambda: _describe_evaluator(arguments)) or model
        rule = Rule(*(getattr(arguments, name) for name in RULE))
        asked = {name: getattr(arguments, name) for name in ("samples", "seed", "shortest")}
        asked["evaluator_context"] = None if evaluator is model else evaluator.context
        pieces, too_short = _choose(arguments, text, evaluator, evaluator is model)
        judge = KeyTokens(pieces, rule, evaluator.tokenizer, too_short)
        made = {"evaluator": options.request(evaluator), "rule": dataclasses.asdict(rule)}
    _check_context(pieces, model)
    weights_id = model.weights_id(step)
    asked |= {"text_key": arguments.text_key, "context": model.context, "step": step, "weights": weights_id}
    request = options.request(model, text=texts.absolute(text), **made)

    def earlier() -> dict:
        return options.earlier_request(request, model) | (
            {"evaluator": options.earlier_request(made["evaluator"], evaluator)} if judge else {}
        )

    with Record(options.out_directory(arguments, model, "longppl"), request, earlier) as record:
        if judge is not None:
            of_judge = step if evaluator is model else evaluator.steps()[-1]
            asked["evaluator_weights"] = evaluator.weights_id(of_judge)
            counts = runner.cells_of(judge)
            own = [] if evaluator is model else [cell | {"task": "longppl"} for cell in counts]
            record.begin(command, asked, [*counts, *own])
            runner.answer(record, judge, runner.Engine(evaluator, of_judge, arguments.batch_size))
            judged = _cells(record, asked, asked["evaluator_weights"], judge.name)
            told = made | {"step": of_judge, "text": texts.absolute(text), "documents": documents(judged)}
            record.write("key_tokens.json", told)
            numbers = _numbers(pieces)
            spans = {
                piece: record.answers[asked["evaluator_weights"], judge.name, piece.length, numbers[piece]]["spans"]
                for piece in pieces
            }
        task = LongPPL(spans, model.tokenizer)
        if evaluator is not model:  # else the key tokens came with the model's own sums
            if judge is None:
                counts = {piece.length: sum(one.length == piece.length for one in pieces) for piece in pieces}
                cells = [{"task": "longppl", "length": n, "examples": count} for n, count in counts.items()]
                record.begin(command, asked, [cell | {"too_short": None} for cell in cells])
            runner.answer(record, task, runner.Engine(model, step, arguments.batch_size))
        cells = _cells(record, asked, weights_id, "key_tokens" if evaluator is model else "longppl")
        processes.on_main(lambda: runner.summarise(record, task, asked, cells))


def _cells(record: Record, asked: Mapping[str, Any], weights_id: str, task: str) -> list[Cell]:
    return [cell for cell in record.cells(asked, [weights_id]) if cell.task == task]


def documents(judged: Sequence[Cell]) -> list[dict]:
    """The key tokens of cells, for a file; `from_json` reads it."""
    names = ("document", "end", "length", "tokens", "keys", "spans")
    return [{name: line[name] for name in names} for cell in judged for line in cell.lines[0]]


def _describe_evaluator(arguments: argparse.Namespace) -> Description | None:
    """None: the model judges itself."""
    if not arguments.evaluator_workdir and not arguments.evaluator_hf:
        if arguments.evaluator_context:
            raise UsageError("--evaluator-context needs --evaluator-hf or --evaluator-workdir")
        return None
    if arguments.evaluator_workdir and arguments.evaluator_hf:
        raise UsageError("give one of --evaluator-workdir and --evaluator-hf")
    return language_model.describe(
        workdir=arguments.evaluator_workdir,
        hf=arguments.evaluator_hf,
        dtype=arguments.dtype,
        context=arguments.evaluator_context,
    )


def _choose(
    arguments: argparse.Namespace, text: str, evaluator: Description, itself: bool
) -> tuple[list[Piece], dict[int, int]]:
    """(the pieces of all lengths, by length how many documents were too short). Raises UserError; see `Documents`."""
    lengths = arguments.lengths or [min(LENGTH, evaluator.context)]
    if lengths[-1] > evaluator.context:
        of, option = ("model", "--context") if itself else ("evaluator", "--evaluator-context")
        raise UsageError(
            f"--lengths: {lengths[-1]} is more than the {of}'s context of {evaluator.context}; {option}=N allows more"
        )
    if lengths[0] <= arguments.short_context + 1:
        raise UsageError(
            f"--lengths: {lengths[0]} has no token with a longer context than --short-context={arguments.short_context}"
            f"; allowed: a --short-context of at most {lengths[0] - 2}"
        )
    all_texts = texts.read(text, arguments.text_key)
    documents = texts.Documents(text, all_texts, evaluator.tokenizer, arguments.seed)
    pieces, too_short = [], {}
    for length in lengths:
        chosen, too_short[length] = documents.choose(length, arguments.samples, arguments.shortest)
        pieces += [Piece.cut(one, evaluator.tokenizer, length) for one in chosen]
    return pieces, too_short


def _check_context(pieces: list[Piece], model: Description) -> None:
    """Raises UsageError: a piece has more tokens of the model than it takes."""
    for piece in pieces:
        size = len(piece.tokens(model.tokenizer)[0]) + 1
        if size > model.context:
            raise UsageError(
                f"a document with {piece.length:,} tokens of the evaluator has {size:,} of the model, more than its "
                f"context of {model.context:,}; --context=N allows more"
            )


def table(by_length: Mapping[str, Mapping]) -> str:
    """A line for each length."""
    heads = ("length", "documents", "too short", "tokens", "key tokens", "percent", "LongPPL", "perplexity")
    lines = ["".join(f"{head:>12}" for head in heads)]
    for length, found in by_length.items():
        cells = [int(length), *(found[name] for name in ("documents", "too_short", "tokens", "key_tokens"))]
        cells += [100 * found["key_share"], found["longppl"], found["perplexity"]]
        lines.append("".join(f"{_cell(cell):>12}" for cell in cells))
    empty = [f"{int(length):,}" for length, found in by_length.items() if not found["key_tokens"]]
    if empty:
        lines.append(f"no key tokens at length {', '.join(empty)}: LongPPL is not defined there")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
