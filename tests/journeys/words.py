"""Perplexity of one sentence: `anchorjax evaluate words --workdir DIR`."""

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anchorjax.evaluation import options, runner, windows
from anchorjax.evaluation.record import Cell
from anchorjax.evaluation.task import Example, Reading
from anchorjax.inference.language_model import Description


class Words:
    name, kind = "words", "score"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        options.add_model(parser)
        options.add_out(parser)
        parser.add_argument("--sentence", default="It was the best of times.", help="what is read")

    def __init__(self, arguments: argparse.Namespace, model: Description):
        self._ids_T = model.tokenizer.encode(arguments.sentence)
        self.request: dict[str, Any] = {"sentence": arguments.sentence}
        self.asked: dict[str, Any] = {}

    def examples(self) -> list[Example]:
        length = len(self._ids_T)
        return [Example("words", length, 0, lambda: Reading(self._ids_T, [windows.whole(length)]), None, length)]

    def facts(self, task: str, length: int) -> dict[str, Any]:
        return {}

    def score(self, example: Example, made: Reading, output: Sequence[np.ndarray]) -> dict[str, Any]:
        return {"score": float(np.exp(output[0].mean()))}

    def tables(self, cells: Sequence[Cell]) -> dict[str, Any]:
        return {"perplexity": cells[0].lines[0][0]["score"]}

    def figures(self, result: Mapping[str, Any]) -> dict[str, bytes]:
        return {}

    def text(self, result: Mapping[str, Any]) -> str:
        return f"perplexity {result['perplexity']:.1f}"


main = functools.partial(runner.main, Words, "words", __doc__)
