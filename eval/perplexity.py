"""Held-out loss of a run, or perplexity of texts by length, for a run or a Hugging Face directory.

    python eval/perplexity.py --workdir=runs/quickstart
    python eval/perplexity.py --hf DIR --lengths=1K,4K --last=512
    python eval/perplexity.py --workdir DIR --text books.jsonl --lengths=16K --window=4K --stride=1K

Without --text a run's validation split is scored packed exactly as in training (anchor, mask, positions), and the last
line is one JSON object: `rows` (as asked), `loss` (nats per target), `bits_per_byte`, `perplexity`, `targets`, `step`,
`by_position` (loss by place in the row) and `by_context` (loss by tokens of the document before it in the row; not
under the `full` mask).

With --text, and always for --hf, whole documents are scored behind the beginning of sequence, cut to each of --lengths;
those that are shorter are left out and counted. Both write perplexity.json and a picture of the loss by place. What
each document or batch gave is kept (answers.jsonl), with which a killed evaluation goes on. Exit codes: 0 done, 1
failed, 2 bad input.
"""

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path

from anchorjax.errors import UsageError
from anchorjax.evaluation import earlier, options, texts
from anchorjax.evaluation.results import Results
from anchorjax.evaluation.tasks import held_out, perplexity
from anchorjax.inference import language_model
from anchorjax.inference.language_model import Description
from anchorjax.inference.scoring import Scorer

LENGTH, SAMPLES = 4096, 20
PACKED = ("workdir", "rows", "out")  # the only options without --text


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__.splitlines()[0])
    options.add_model(parser)
    options.add_documents(parser, LENGTH, SAMPLES)
    parser.add_argument("--last", type=options.tokens, default=0, help="also perplexity of so many tokens at the end")
    parser.add_argument("--window", type=options.tokens, default=0, help="tokens read at once; default: whole rows")
    parser.add_argument("--stride", type=options.tokens, default=0, help="of windows; default: half of --window")
    parser.add_argument("--rows", type=int, default=0, help="without --text: rows to score; 0 is the whole split")
    return options.run("perplexity.py", lambda: evaluate(parser.parse_args(argv), parser))


def evaluate(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if arguments.rows < 0:
        raise UsageError(f"--rows={arguments.rows} is not allowed: it must be 0 or more")
    if arguments.hf or arguments.text or not arguments.workdir:
        options.refuse(parser, arguments, ["rows"], "is for --workdir without --text; --samples is for documents")
        return score_texts(arguments)
    others = [name for name in vars(arguments) if name not in PACKED]
    options.refuse(parser, arguments, others, "is for --text: without it the run's own split is scored")
    score_packed(arguments.workdir.expanduser(), arguments)


def score_packed(workdir: Path, arguments: argparse.Namespace) -> None:
    setup = held_out.load(workdir)
    out = arguments.out.expanduser() if arguments.out else workdir / "eval/perplexity"
    with Results(out, {"split": "validation"}) as results:
        result = {"rows": arguments.rows} | held_out.evaluate(setup, workdir, arguments.rows, results)
        path = results.write("perplexity.json", result)
        results.write("perplexity.png", perplexity.picture(perplexity.packed_columns(result)))
    print(perplexity.packed_table(result))
    print(f"written to {path}")
    print(json.dumps(result))


def score_texts(arguments: argparse.Namespace) -> None:
    model = options.description(arguments)
    stride = arguments.stride or arguments.window // 2
    measure = perplexity.Measure(arguments.last, arguments.window, stride)
    lengths = arguments.lengths or [min(LENGTH, model.context)]
    check(lengths, measure, model)
    text = arguments.text or texts.SHIPPED
    documents = texts.Documents(text, texts.read(text, arguments.text_key), model.tokenizer, arguments.seed)
    chosen = {length: documents.choose(length, arguments.samples) for length in lengths}
    request = options.request(model, text=texts.absolute(text), **dataclasses.asdict(measure))
    step = model.steps()[-1]
    mark = model.mark(step)
    scorer = functools.cache(lambda: Scorer(language_model.load(model, step=step), arguments.batch_size))
    name = "perplexity-text" if model.is_run else "perplexity"
    with Results(options.out_directory(arguments, model, name), request) as results:
        rows = {length: some for length, (some, _) in chosen.items()}
        sums = perplexity.score(scorer, rows, measure, model.tokenizer, mark, results)
        found = {
            length: {"too_short": chosen[length][1], **perplexity.summary(sums[length], length, measure.last)}
            for length in lengths
        }
        asked = {name: getattr(arguments, name) for name in ("text_key", "samples", "seed")}
        told = request | asked | {"context": model.context, "step": step, "weights": mark}
        before, new = earlier.beside(results.directory / "perplexity.json", told | {"lengths": found}, told)
        whole = earlier.union(before, new, ["lengths"])  # with those of an earlier command
        path = results.write("perplexity.json", whole)
        columns = perplexity.length_columns({int(length): whole["lengths"][length] for length in whole["lengths"]})
        results.write("perplexity.png", perplexity.picture(columns))
    print(perplexity.table(found, measure.last))
    print(f"written to {path}")


def check(lengths: list[int], measure: perplexity.Measure, model: Description) -> None:
    """Raises UsageError for what the model or the documents cannot give."""
    if measure.window > model.context:
        raise UsageError(
            f"--window={measure.window} is more than the model's context of {model.context}; --context=N allows more"
        )
    if not measure.window:
        options.check_lengths(lengths, model)
    if lengths[0] <= max(1, measure.last):
        raise UsageError(f"--lengths: {lengths[0]} leaves no room for --last={measure.last} behind the first token")


if __name__ == "__main__":
    sys.exit(main())
