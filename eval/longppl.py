"""LongPPL, perplexity of what needs a long context: `python eval/longppl.py --hf DIR --text books.jsonl --lengths=32K`.

Key tokens are found by an evaluator (--evaluator-hf or --evaluator-workdir), come from a file that an earlier run wrote
(--key-tokens), or are the model's own; see anchorjax/evaluation/tasks/longppl.py. Of each document the first
--lengths tokens of the evaluator are taken, by all models the same characters; the text that ships has none as long as
the default of
32K, and is for trying with less. Only one model is in memory at a time.

Writes longppl.json (LongPPL, perplexity, share of key tokens), key_tokens.json, a picture, and every
document's answer (answers.jsonl), with which a killed evaluation goes on. Exit codes: 0 done, 1 failed, 2 bad input.
"""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path

from anchorjax.errors import UsageError
from anchorjax.evaluation import earlier, options, texts
from anchorjax.evaluation.results import Results
from anchorjax.evaluation.tasks import longppl
from anchorjax.evaluation.tasks.longppl import Piece, Reader, Rule
from anchorjax.inference import language_model
from anchorjax.inference.language_model import Description
from anchorjax.inference.scoring import Scorer
from anchorjax.pages import figures

LENGTH, SAMPLES = 32768, 50  # as the paper has them
RULE = ("short_context", "stride", "alpha", "beta")
CHOICE = ("lengths", "samples", "seed", "shortest", "evaluator_hf", "evaluator_workdir", "evaluator_context")


def main(argv: list[str] | None = None) -> int:
    rule = Rule()
    parser = options.Parser(description=__doc__.splitlines()[0])
    options.add_model(parser)
    options.add_documents(parser, LENGTH, SAMPLES)
    parser.add_argument("--shortest", type=options.tokens, help="tokens of the documents to take; default: --lengths")
    parser.add_argument("--evaluator-workdir", type=Path, help="a training run that finds the key tokens")
    parser.add_argument("--evaluator-hf", type=Path, help="a Hugging Face directory that does; default: the model")
    parser.add_argument(
        "--evaluator-context", type=options.tokens_or_0, default=0, help="as --context, for the evaluator"
    )
    parser.add_argument("--key-tokens", type=Path, help="key_tokens.json of an earlier run, in place of an evaluator")
    parser.add_argument("--short-context", type=options.tokens, default=rule.context, help="tokens, at least")
    parser.add_argument("--stride", type=options.tokens, default=rule.stride, help="tokens that share a short context")
    parser.add_argument("--alpha", type=float, default=rule.alpha, help="least gain by the long context, in nats")
    parser.add_argument("--beta", type=float, default=rule.beta, help="least log-probability in the long context")
    return options.run("longppl.py", lambda: evaluate(parser.parse_args(argv), parser))


def evaluate(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    model = options.description(arguments)
    text = arguments.text or texts.SHIPPED
    if arguments.key_tokens:
        options.refuse(parser, arguments, RULE + CHOICE, "does not go with --key-tokens, which was made with its own")
        asked = {"key_tokens_file": options.absolute(arguments.key_tokens)}
        evaluator, rule, too_short = None, None, {}
        spans, made = longppl.from_json(arguments.key_tokens, texts.read(text, arguments.text_key))
        pieces = list(spans)
    else:
        evaluator = describe_evaluator(arguments) or model
        rule = Rule(*(getattr(arguments, name) for name in RULE))
        asked = {name: getattr(arguments, name) for name in ("samples", "seed", "shortest")}
        asked["evaluator_context"] = None if evaluator is model else evaluator.context
        pieces, too_short = choose(arguments, text, evaluator, evaluator is model)
        made = {"evaluator": options.request(evaluator), "rule": dataclasses.asdict(rule)}
    check_context(pieces, model)
    asked |= {"text_key": arguments.text_key, "context": model.context}
    request = options.request(model, text=texts.absolute(text), **made)
    with Results(options.out_directory(arguments, model, "longppl"), request) as results:
        reader = make_reader(model, arguments.batch_size)
        if evaluator is not None:
            judge = reader if evaluator is model else make_reader(evaluator, arguments.batch_size)
            made |= {"step": judge.step, "text": texts.absolute(text)}
            judged = longppl.judge(judge, pieces, rule, results, itself=judge is reader)
            results.write("key_tokens.json", made | {"documents": longppl.to_json(judged)})
            spans = {piece: found["spans"] for piece, found in judged.items()}
            judge = None  # one model at a time
        sums = longppl.measure(reader, spans, results)
        found = longppl.by_length(sums, too_short)
        told = request | asked | {"step": reader.step, "weights": reader.mark}
        earlier.beside(results.directory / "longppl.json", told | {"lengths": found}, told, _other_lengths)
        path = results.write("longppl.json", told | {"lengths": found})
        results.write("longppl.png", picture(found))
    print(longppl.table(found))
    print(f"written to {path}")


def picture(found: dict[int, dict]) -> bytes:
    """LongPPL and perplexity by length; a length without a key token has no LongPPL."""
    series = []
    for label, name in (("LongPPL", "longppl"), ("perplexity", "perplexity")):
        points = {length: row[name] for length, row in found.items() if row[name] is not None}
        if points:
            series.append(figures.Series(label, list(points), list(points.values())))
    ticks = {"x_ticks": list(found), "name_tick": figures.name_length}
    return figures.png(figures.lines(series, x_label="tokens", y_label="LongPPL and perplexity", log_y=True, **ticks))


def _other_lengths(before: dict, new: dict) -> str:
    """Results of both would not be those of key_tokens.json, which is the last command's."""
    lost = [length for length in before["lengths"] if length not in new["lengths"]]
    return f"--lengths is without {', '.join(lost)}" if lost else ""


def describe_evaluator(arguments: argparse.Namespace) -> Description | None:
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


def choose(
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
        )
    all_texts = texts.read(text, arguments.text_key)
    documents = texts.Documents(text, all_texts, evaluator.tokenizer, arguments.seed)
    pieces, too_short = [], {}
    for length in lengths:
        chosen, too_short[length] = documents.choose(length, arguments.samples, arguments.shortest)
        pieces += [Piece.cut(one, evaluator.tokenizer, length) for one in chosen]
    return pieces, too_short


def check_context(pieces: list[Piece], model: Description) -> None:
    """Raises UsageError: a piece has more tokens of the model than it takes."""
    for piece in pieces:
        size = len(piece.tokens(model.tokenizer)[0]) + 1
        if size > model.context:
            raise UsageError(
                f"a document with {piece.length:,} tokens of the evaluator has {size:,} of the model, more than its "
                f"context of {model.context:,}; --context=N allows more"
            )


def make_reader(model: Description, batch_size: int) -> Reader:
    step = model.steps()[-1]
    scorer = functools.cache(lambda: Scorer(language_model.load(model, step=step), batch_size))
    return Reader(scorer, model.tokenizer, step, model.mark(step))


if __name__ == "__main__":
    sys.exit(main())
