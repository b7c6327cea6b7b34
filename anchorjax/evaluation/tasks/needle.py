"""Needle in a haystack by depth and length: `anchorjax evaluate needle --hf DIR --lengths=1K,2K`.

One number is hidden at each depth of essays (or noise) of each length, and asked for. A cell asks for the one value
that RULER's niah_single_2 asks for (with --haystack=noise, niah_single_1), but its depth is given instead of drawn.
Writes needle.json, a heat map and every answer (answers.jsonl); rerun the command to resume. Exit codes: 0 done,
1 failed, 2 bad input.
"""

import argparse
import functools
import operator
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anchorjax.data.text.chat import ChatTemplate
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import EvaluationError
from anchorjax.evaluation import heat_maps, options, runner
from anchorjax.evaluation.record import Cell
from anchorjax.evaluation.task import Example, How
from anchorjax.evaluation.tasks.ruler.haystack import open_essays
from anchorjax.evaluation.tasks.ruler.needles import Kind, NeedleRecipe
from anchorjax.evaluation.tasks.ruler.sample import Sample, Setting
from anchorjax.evaluation.tasks.ruler.scores import match
from anchorjax.evaluation.tasks.ruler.tasks import Samples
from anchorjax.inference.language_model import Description

MAX_NEW_TOKENS = 128  # as in RULER


class Needle:
    """The grid of lengths and depths; a length is a cell of the record."""

    name, kind = "needle", "generate"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        options.add_model(parser)
        options.add_samples(parser, samples=1)
        parser.add_argument("--depths", type=options.positive, default=11, help="how many, from 0 to 100 percent")
        parser.add_argument("--haystack", default="essays", choices=("essays", "noise"), help="text around the needle")

    def __init__(self, arguments: argparse.Namespace, model: Description):
        options.check_lengths(arguments.lengths, model)
        self._depths = np.linspace(0, 100, arguments.depths).round(1).tolist()
        how = {"haystack": arguments.haystack, "essays": arguments.essays}
        chat = options.chat_template(arguments, model)
        self._grid = Grid(
            model.tokenizer, arguments.lengths, self._depths, arguments.samples, arguments.seed, chat=chat, **how
        )
        named = {name: getattr(arguments, name) for name in ("samples", "seed", "template", "haystack")}
        self.request = {"depths": self._depths} | named | options.material(essays=arguments.essays)
        self.asked: dict[str, Any] = {}

    def examples(self) -> list[Example]:
        row = len(self._grid) // len(self._grid.lengths)
        return [
            Example(
                "needle",
                length,
                index,
                functools.partial(operator.getitem, self._grid, number * row + index),
                How(MAX_NEW_TOKENS),
                length,
            )
            for number, length in enumerate(self._grid.lengths)
            for index in range(row)
        ]

    def facts(self, task: str, length: int) -> dict[str, Any]:
        return {}

    def score(self, example: Example, made: Sample, output: str) -> dict[str, Any]:
        found = 100 * match("all", output, made.references)
        return {"score": found, "depth": made.depths[0]} | ({"material": made.material} if made.material else {})

    def tables(self, cells: Sequence[Cell]) -> dict[str, Any]:
        cells = sorted(cells, key=lambda cell: cell.length)
        scores = np.array([[line["score"] for line in cell.lines[0]] for cell in cells])
        percent_LE = scores.reshape(len(cells), len(self._depths), -1).mean(-1)
        material = cells[0].lines[0][0].get("material", "")
        table = {"lengths": [cell.length for cell in cells], "percent": percent_LE.tolist()}
        return table | {"mean": float(percent_LE.mean()), "material": material}

    def figures(self, result: Mapping[str, Any]) -> dict[str, bytes]:
        rows, percent_EL = [f"{depth:g}%" for depth in result["depths"]], np.asarray(result["percent"]).T
        return {"needle.png": heat_maps.by_length(percent_EL, rows, result["lengths"], "Needle found, percent")}

    def text(self, result: Mapping[str, Any]) -> str:
        lines = [f"{'length':>9}" + "".join(f"{depth:>7g}%" for depth in result["depths"])]
        for length, row in zip(result["lengths"], result["percent"], strict=True):
            lines.append(f"{length:>9}" + "".join(f"{value:>8.0f}" for value in row))
        return "\n".join(
            [*lines, f"mean {result['mean']:.1f} percent; {result['material'] or 'haystacks as in RULER'}"]
        )


def main(argv: Sequence[str] | None = None) -> int:
    return runner.main(Needle, "needle", __doc__, argv)


class Grid(Sequence):
    """Samples by length, then depth, then repetition; each is made when it is asked for."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        lengths: Sequence[int],
        depths: Sequence[float],
        repeats: int = 1,
        seed: int = 42,
        *,
        haystack: Literal["essays", "noise"] = "essays",
        essays: Path | None = None,
        chat: ChatTemplate | None = None,
    ):
        """
        Args:
          lengths: tokens of prompt, answer prefix and answer together, as in `ruler.make`.
          depths: percent of the haystack before the needle, from 0 to 100: of the words of essays, to the nearest end
            of a sentence, or of the lines of noise.
          repeats: samples of a cell, each with another key and value.
          essays, chat: as in `ruler.make`.

        Raises:
          EvaluationError: no length or depth, a depth outside of 0..100, a haystack that cannot be read, or a length
            without room for a needle.
        """
        if not lengths or not depths or repeats < 1:
            raise EvaluationError(
                f"a grid of {len(lengths)} lengths, {len(depths)} depths and {repeats} repeats is empty"
            )
        outside = [depth for depth in depths if not 0 <= depth <= 100]
        if outside:
            raise EvaluationError(f"depths={outside[0]} is not allowed: a depth is a percentage from 0 to 100")
        self.lengths, self.depths, self.repeats = tuple(lengths), tuple(depths), repeats
        kind = Kind(haystack)
        text = open_essays(essays) if haystack == "essays" else None

        def recipe(rng: random.Random, index: int) -> NeedleRecipe:
            return NeedleRecipe(kind, rng, text, depths=(self.depths[index // repeats],))

        self._rows = [
            Samples("needle", Setting(tokenizer, n, seed), recipe, len(depths) * repeats, MAX_NEW_TOKENS, chat)
            for n in lengths
        ]

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"the grid has {len(self)} samples, and no sample {index}")
        row, column = divmod(index % len(self), len(self._rows[0]))
        return self._rows[row][column]

    def heat_map(self, predictions: Iterable[str]) -> np.ndarray:
        """float64 [lengths, depths]: percent of the needles found, of one prediction for each sample in order.

        The references are drawn again, without tokenizing a text. Raises EvaluationError: not as many as samples.
        """
        predictions = list(predictions)
        if len(predictions) != len(self):
            raise EvaluationError(f"{len(predictions)} predictions for {len(self)} samples; there must be one for each")
        references = [references for row in self._rows for references in row.references()]
        found = [match("all", *pair) for pair in zip(predictions, references, strict=True)]
        return 100 * np.asarray(found).reshape(len(self.lengths), len(self.depths), self.repeats).mean(-1)
