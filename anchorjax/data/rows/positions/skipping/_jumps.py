"""Positions that go on by one but for some jumps."""

from collections.abc import Sequence

import numpy as np


def jump(seq_len: int, starts: Sequence[int] | np.ndarray, skips: Sequence[int] | np.ndarray) -> np.ndarray:
    """0, 1, ... with `skips[k]` positions left out in front of index `starts[k]` of the row: int32 [seq_len].

    Skips at one index add up, and each moves all tokens from there on, padding among them.
    """
    skips_T = np.zeros(seq_len, np.int32)
    np.add.at(skips_T, starts, skips)
    return np.arange(seq_len, dtype=np.int32) + np.cumsum(skips_T, dtype=np.int32)
