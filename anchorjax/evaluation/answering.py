"""Answers of a model, batch by batch, each kept as soon as it is there."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import tqdm

from anchorjax.evaluation.results import Results
from anchorjax.inference.generation import Generator


class Sample(Protocol):
    """What a model is asked.

    Attributes:
      ids_T: int32 [T], the prompt behind the beginning of sequence.
      max_new_tokens: of the answer.
    """

    ids_T: np.ndarray
    max_new_tokens: int


Question = TypeVar("Question")


def answer(
    generator: Callable[[], Generator],
    samples: Sequence[Sample],
    keys: Sequence[str],
    results: Results,
    label: str,
    **how: Any,
) -> list[str]:
    """Greedy answers in the order of the samples; those that `results` has are not asked again.

    Args:
      generator: gives the model, which is loaded only if something is missing.
      keys: of each sample in `results`.
      how: what else `Generator.generate` is told.
    """

    def find(places: list[int]) -> list[dict[str, Any]]:
        some = [samples[place] for place in places]  # only now: making a long sample takes seconds
        prompts, most = [one.ids_T.tolist() for one in some], max(one.max_new_tokens for one in some)
        made = generator().generate(prompts, most, **how)
        return [{"text": one.text, "tokens": len(one.tokens), "reason": one.reason} for one in made]

    fill(results, dict(zip(keys, range(len(samples)), strict=True)), find, lambda: generator().batch_size, label)
    return [results.answers[key]["text"] for key in keys]


def fill(
    results: Results,
    questions: Mapping[str, Question],
    find: Callable[[list[Question]], list[dict[str, Any]]],
    batch_size: Callable[[], int],
    label: str,
) -> None:
    """Puts into `results` what is not there yet, in the order of the questions.

    Args:
      questions: by their keys in `results`.
      find: answers to some of them.
      batch_size: how many questions at once; asked only if something is missing.
    """
    missing = results.missing(questions)
    with tqdm.tqdm(
        total=len(questions), initial=len(questions) - len(missing), desc=label, disable=not sys.stderr.isatty()
    ) as bar:
        while missing:
            some, missing = missing[: batch_size()], missing[batch_size() :]
            results.add_all(dict(zip(some, find([questions[key] for key in some]), strict=True)))
            bar.update(len(some))
