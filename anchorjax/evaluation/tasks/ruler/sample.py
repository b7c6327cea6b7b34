"""What a task makes: a draft at any size, and the sample that a model is asked."""

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np

from anchorjax.data.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all samples of one task and length share.

    Attributes:
      length: prompt, answer prefix and generated tokens together, in tokens.
      essays, squad, hotpot: files of the user; None where none was named.
    """

    tokenizer: Tokenizer
    length: int
    seed: int
    essays: Path | None = None
    squad: Path | None = None
    hotpot: Path | None = None


@dataclasses.dataclass(frozen=True)
class Draft:
    """One question with as much filler as was asked for; the fields are those of `Sample`."""

    prompt: str
    answer_prefix: str
    references: tuple[str, ...]
    depths: tuple[float, ...] = ()
    material: str = ""


class Recipe(Protocol):
    """One question, of which everything random is drawn but how much filler stands around it.

    Attributes:
      smallest, largest: sizes that `draft` takes, in units of filler: words, lines or documents.
    """

    smallest: int
    largest: int

    def draft(self, size: int) -> Draft:
        """The question with `size` units of filler: a pure function, with about as many tokens per unit at any size."""
        ...


UNLIMITED = 1 << 40  # units of filler: more than any length takes


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """What a model is asked, and what it should say.

    Attributes:
      task: name of the task, such as "niah_single_1".
      index: which sample of the task; it is the same sample whatever their number is.
      length: tokens that were asked for; `len(ids_T) + max_new_tokens` is at most this.
      prompt: the text without the answer prefix; with a chat template, all turns up to the beginning of the answer.
      answer_prefix: how the answer begins; the model goes on from here.
      references: what an answer has to hold: each (metric "all") or any (metric "part") of them.
      depths: where what is asked for lies in the haystack, from 0 (its beginning) to 100: one depth for each reference
        of a needle task and for each assignment of vt, one for each document with the answer of qa; none for words.
      material: what the filler is where that matters: scores on other than RULER's essays are not RULER's.
      max_new_tokens: budget of the answer in tokens.
      ids_T: int32 [T], BOS, then prompt and answer prefix.
    """

    task: str
    index: int
    length: int
    prompt: str = dataclasses.field(repr=False)
    answer_prefix: str
    references: tuple[str, ...]
    depths: tuple[float, ...]
    material: str
    max_new_tokens: int
    ids_T: np.ndarray = dataclasses.field(repr=False)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt, answer prefix and answer together."""
        return len(self.ids_T) + self.max_new_tokens
