"""Everything random about rows: pure functions of the seed, and of an epoch or a row.

Raw draws are sorted, `Generator.permutation` and its like are not used: numpy promises that Philox's raw stream
never changes, but not what a Generator makes of it, and a resumed run must see the same rows after an upgrade.
"""

import enum

import numpy as np

SHORT = 4096  # tokens; below it a document is short (Long-Context-Data-Engineering, arXiv 2402.10171, and the paper)
ONE_IN = 10  # short documents of each source is kept by an epoch of `upsample_long`


class Stream(enum.IntEnum):
    """Independent streams of one seed. Their numbers are part of every run's data: never change one."""

    DOCUMENTS = 0
    ROWS = 1
    SHORT_DOCUMENTS = 2
    LEFT_OUT = 3
    CUTS = 4
    MERGE = 5
    POSITIONS = 6
    RECONSTRUCTION = 7


def generator(stream: Stream, seed: int, index: int) -> np.random.Philox:
    """Raw draws from the beginning of the stream. `index` is an epoch, or a row for CUTS, MERGE and POSITIONS."""
    return np.random.Philox(key=np.array([seed, index], np.uint64), counter=[0, 0, 0, int(stream)])


def draws(stream: Stream, seed: int, index: int, count: int) -> np.ndarray:
    """uint64 [count], uniform."""
    return generator(stream, seed, index).random_raw(count)


def permutation(stream: Stream, seed: int, index: int, count: int) -> np.ndarray:
    """0 .. count - 1 in random order, int64."""
    return np.argsort(draws(stream, seed, index, count), kind="stable")


def long_documents(lengths: np.ndarray, sources: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Which documents an epoch of `upsample_long` holds, bool [num_documents].

    Of each source all long documents and a tenth of the short ones, then as many of these, in random order, as
    leave every source its share of the tokens (to within one document). Nothing is repeated, so that the source
    that loses most decides how many tokens an epoch has; other documents are kept in the next epoch.

    Args:
      lengths: tokens of each document.
      sources: the source of each document.
    """
    short = (lengths < SHORT).astype(np.int64)
    by_draw = permutation(Stream.SHORT_DOCUMENTS, seed, epoch, len(lengths))
    most_S = -(-np.bincount(sources, weights=short) // ONE_IN)
    kept = (short == 0) | (_before_in_source(by_draw, sources, short) < most_S[sources])
    tokens_S = np.bincount(sources, weights=lengths)
    kept_S = np.bincount(sources, weights=lengths * kept)
    scale = np.min(kept_S[tokens_S > 0] / tokens_S[tokens_S > 0])
    by_draw = permutation(Stream.LEFT_OUT, seed, epoch, len(lengths))
    return kept & (_before_in_source(by_draw, sources, lengths * kept) < (scale * tokens_S)[sources])


def _before_in_source(order: np.ndarray, sources: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each document the sum of `values` over those of its source that come before it in `order`."""
    by_source = order[np.argsort(sources[order], kind="stable")]
    before = np.cumsum(values[by_source]) - values[by_source]
    first = np.searchsorted(sources[by_source], sources[by_source])
    result = np.empty_like(before)
    result[by_source] = before - before[first]
    return result
