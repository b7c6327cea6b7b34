"""Answers of a model to samples, batch by batch, each kept as soon as it is there."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tqdm

from anchorjax.evaluation.generation import Generator
from anchorjax.evaluation.results import Results


class Sample(Protocol):
    """What a model is asked.

    Attributes:
      ids_T: int32 [T], the prompt behind the beginning of sequence.
      max_new_tokens: of the answer.
    """

    ids_T: np.ndarray
    max_new_tokens: int


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
    missing = [place for place, key in enumerate(keys) if key not in results.answers]
    with tqdm.tqdm(
        total=len(keys), initial=len(keys) - len(missing), desc=label, disable=not sys.stderr.isatty()
    ) as bar:
        while missing:
            rows = generator().batch_rows
            places, missing = missing[:rows], missing[rows:]
            some = [samples[place] for place in places]
            prompts, most = [one.ids_T.tolist() for one in some], max(one.max_new_tokens for one in some)
            made = generator().generate(prompts, most, **how)
            for place, one in zip(places, made, strict=True):
                results.add(keys[place], text=one.text, tokens=len(one.tokens), reason=one.reason)
            bar.update(len(places))
    return [results.answers[key]["text"] for key in keys]
