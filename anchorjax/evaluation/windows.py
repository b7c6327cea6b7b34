"""Windows over a document: which tokens a model reads at once, and which of them it is asked about.

A BOS of its own precedes every window, as a document does in training: without it, what the first
token is to attention would be lost with the context.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from anchorjax.inference.scoring import Scorer


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` - 1 are read, and of these `first` to `end` - 1 are scored."""

    begin: int
    first: int
    end: int


def whole(size: int) -> list[Window]:
    return [Window(0, 0, size)]


def sliding(size: int, window: int, stride: int) -> list[Window]:
    """Windows of `window` tokens, `stride` apart, that score each of `size` tokens once, with the most context.

    All of the first window are scored, and of each later one what no window before it holds: with at least
    `window - stride` tokens before it.
    """
    found = [Window(0, 0, min(window, size))]
    while found[-1].end < size:
        begin = found[-1].begin + stride
        found.append(Window(begin, found[-1].end, min(begin + window, size)))
    return found


def short_contexts(size: int, context: int, stride: int) -> list[Window]:
    """Windows that score each token from `context` on once, with `context` to `context + stride - 1` tokens before."""
    return [
        Window(begin, begin + context, min(begin + context + stride, size))
        for begin in range(0, size - context, stride)
    ]


def score(
    scorer: Scorer, documents: Sequence[np.ndarray], windows: Sequence[Sequence[Window]], front: Sequence[int]
) -> list[np.ndarray]:
    """-log p of the tokens of each document, in its windows: float64 [T]; NaN for those that no window scores.

    Args:
      documents: int [T] each.
      windows: of each document.
      front: tokens before every window: BOS. Without any, a window's first token has no score.
    """
    places = [(number, window) for number, some in enumerate(windows) for window in some]
    rows = [[*front, *documents[number][window.begin : window.end].tolist()] for number, window in places]
    nats = [np.full(len(ids_T), np.nan) for ids_T in documents]
    for (number, window), scored in zip(places, scorer.score(rows), strict=True):
        nats_T = np.concatenate([[np.nan], scored.nats_t])[len(front) :]  # of the window's own tokens
        nats[number][window.first : window.end] = nats_T[window.first - window.begin :]
    return nats
