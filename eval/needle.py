"""Needle in a haystack by depth and length: `python eval/needle.py --hf DIR --lengths=1K,2K,4K`.

One number is hidden at each depth of essays (or noise) of each length, and asked for. Writes needle.json, a heat map
and every answer (answers.jsonl), with which a killed evaluation goes on. Exit codes: 0 done, 1 failed, 2 bad input.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

from anchorjax.evaluation import earlier, heat_maps, options
from anchorjax.evaluation.answering import answer
from anchorjax.evaluation.results import Results
from anchorjax.evaluation.tasks.needle import Grid
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__.splitlines()[0])
    options.add_model(parser)
    options.add_samples(parser, samples=1)
    parser.add_argument("--depths", type=options.positive, default=11, help="how many, from 0 to 100 percent")
    parser.add_argument("--haystack", default="essays", choices=("essays", "noise"))
    return options.run("needle.py", lambda: evaluate(parser.parse_args(argv)))


def evaluate(arguments: argparse.Namespace) -> None:
    model = options.description(arguments)
    options.check_lengths(arguments.lengths, model)
    depths = np.linspace(0, 100, arguments.depths).round(1).tolist()
    grid = Grid(
        model.tokenizer,
        arguments.lengths,
        depths,
        arguments.samples,
        arguments.seed,
        haystack=arguments.haystack,
        essays=arguments.essays,
        chat=options.chat_template(arguments, model),
    )
    request = options.request(
        model,
        depths=depths,
        samples=arguments.samples,
        seed=arguments.seed,
        template=arguments.template,
        haystack=arguments.haystack,
        **options.material(essays=arguments.essays),
    )
    step = model.steps()[-1]
    mark = model.mark(step)
    generator = functools.cache(lambda: Generator(language_model.load(model, step=step), arguments.batch_size))
    with Results(options.out_directory(arguments, model, "needle"), request) as results:
        of_length = len(depths) * arguments.samples
        keys = [f"{mark} {length} {index}" for length in arguments.lengths for index in range(of_length)]
        answers = answer(generator, grid, keys, results, "needles")
        found = {"lengths": arguments.lengths, "percent": grid.heat_map(answers).tolist()}
        found |= {"step": step, "weights": mark, "context": model.context, "material": grid[0].material}
        file = results.directory / "needle.json"
        result = with_earlier(file, request | found, [*request, "step", "weights", "context", "material"])
        results.write(file.name, result)
        percent, rows = np.asarray(result["percent"]), [f"{depth:g}%" for depth in depths]
        results.write("needle.png", heat_maps.by_length(percent.T, rows, result["lengths"], "Needle found, percent"))
    print(f"{'length':>9}" + "".join(f"{depth:>7g}%" for depth in depths))
    for length, row in zip(result["lengths"], percent, strict=True):
        print(f"{length:>9}" + "".join(f"{value:>8.0f}" for value in row))
    print(f"mean {result['mean']:.1f} percent; {grid[0].material or 'haystacks as in RULER'}")
    print(f"written to {file}")


def with_earlier(file: Path, new: dict, same: list[str]) -> dict:
    """`new`, with other lengths that an earlier command found, and the mean of all."""
    before, new = earlier.beside(file, new, same)
    rows = dict(zip(before.get("lengths", []), before.get("percent", []), strict=True))
    rows |= dict(zip(new["lengths"], new["percent"], strict=True))
    lengths = sorted(rows)
    percent = [rows[length] for length in lengths]
    return new | {"lengths": lengths, "percent": percent, "mean": float(np.mean(percent))}


if __name__ == "__main__":
    sys.exit(main())
