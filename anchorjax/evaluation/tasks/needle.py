"""One needle at chosen depths of haystacks of chosen lengths: what a heat map of retrieval is drawn from.

A cell asks for the one value that RULER's niah_single_2 asks for (with `haystack="noise"`, niah_single_1), but its
depth is given instead of drawn.
"""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from anchorjax.data.text.chat import ChatTemplate
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import EvaluationError
from anchorjax.evaluation.tasks.ruler.haystack import open_essays
from anchorjax.evaluation.tasks.ruler.needles import Kind, NeedleRecipe
from anchorjax.evaluation.tasks.ruler.sample import Setting
from anchorjax.evaluation.tasks.ruler.scores import match
from anchorjax.evaluation.tasks.ruler.tasks import Samples

MAX_NEW_TOKENS = 128  # as in RULER


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
