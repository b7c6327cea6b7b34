"""Rows of ids as batches of few shapes."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from anchorjax.errors import EvaluationError
from anchorjax.inference.language_model import Description

SMALLEST = 16  # of buckets

Item = TypeVar("Item")


def bucket(size: int) -> int:
    """The next of 16, 20, 24, 28, 32, 40, 48, ...: four to an octave, so less than a fifth of a bucket is padding."""
    size = max(size, SMALLEST)
    step = (1 << (size - 1).bit_length() - 1) // 4
    return -(-size // step) * step


def batches(
    items: Sequence[Item], rows: int, size: Callable[[Item], int], kind: Callable[[int], int] | None = None
) -> Iterator[list[Item]]:
    """Groups of at most so many items, ascending in size, so that there is little padding.

    Args:
      kind: of a size; items of different kinds are never batched together. None: one kind.
    """
    kind = kind or (lambda size: 0)
    for _, some in itertools.groupby(sorted(items, key=size), key=lambda item: kind(size(item))):
        left = list(some)
        yield from (left[first : first + rows] for first in range(0, len(left), rows))


def check_ids(rows: Sequence[Sequence[int]], model: Description) -> None:
    """Raises EvaluationError for a token that the model does not know, in whose place it would take another."""
    largest = max((max(row, default=0) for row in rows), default=0)
    if largest >= model.model.vocab_size:
        raise EvaluationError(
            f"the tokenizer of {model.directory} gives the token {largest:,}, and the model knows "
            f"{model.model.vocab_size:,}: it is another model's, or has tokens that were added later"
        )
