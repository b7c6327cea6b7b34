"""Everything random about rows: pure functions of the seed, and of an epoch or a row.

Raw draws are sorted, `Generator.permutation` and its like are not used: numpy promises that Philox's raw stream
never changes, but not what a Generator makes of it, and a resumed run must see the same rows after an upgrade.
"""

import enum

import numpy as np

SHORT = 4096  # tokens; below it a document is short (Long-Context-Data-Engineering, arXiv 2402.10171, and the paper)
KEPT = 0.1  # share of the short documents of each source that an epoch of `upsample_long` keeps


class Stream(enum.IntEnum):
    """Independent streams of one seed. Their numbers are part of every run's data: never change one."""

    DOCUMENTS = 0
    ROWS = 1
    SHORT_DOCUMENTS = 2
    LEFT_OUT = 3
    CUTS = 4
    MERGE = 5


def draws(stream: Stream, seed: int, index: int, count: int) -> np.ndarray:
    """uint64 [count], uniform. `index` is an epoch, or a row for CUTS and MERGE."""
    generator = np.random.Philox(key=np.array([seed, index], np.uint64), counter=[0, 0, 0, int(stream)])
    return generator.random_raw(count)


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
    by_draw = permutation(Stream.SHORT_DOCUMENTS, seed, epoch, len(lengths))
    by_other_draw = permutation(Stream.LEFT_OUT, seed, epoch, len(lengths))
    kept = lengths >= SHORT
    groups = np.unique(sources)
    for source in groups:
        short = by_draw[((sources == source) & ~kept)[by_draw]]
        kept[short[: int(np.ceil(KEPT * len(short)))]] = True
    tokens = np.array([lengths[sources == source].sum() for source in groups])
    scale = min(np.array([lengths[kept & (sources == source)].sum() for source in groups]) / tokens)
    for source, budget in zip(groups, scale * tokens, strict=True):
        candidates = by_other_draw[(kept & (sources == source))[by_other_draw]]
        before = np.cumsum(lengths[candidates]) - lengths[candidates]
        kept[candidates[before >= budget]] = False
    return kept
