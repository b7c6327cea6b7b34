"""Segment ids of a row, which decide who sees whom, and the number of keys that each token sees.

A segment is a document, or with a window w (window_schedule.py) the part of a document in one window: tokens i and j
share a window if floor(i / w) = floor(j / w), i and j their places in the row. With documents (a b c d e) and (f g),
the anchor A and w = 4:

    tokens               A  a  b  c  d  e  f  g  .      . = padding
    segment ids          0  1  1  1  1  1  2  2 -1      anchor, intra_doc
      in windows of 4    0  1  1  1  2  2  3  3 -1
    segment ids          0  0  0  0  0  0  0  0 -1      full
      in windows of 4    0  0  0  0  1  1  1  1 -1

Anchors stay visible to every window, as they do to every document (anchorjax/masks.py).
"""

import numpy as np

from anchorjax.types import PAD_SEGMENT


def segment_ids(
    document_P: np.ndarray, length_P: np.ndarray, seq_len: int, mask: str, window: int | None
) -> np.ndarray:
    """Returns the segment of each token of a row: int32 [T], numbered from 0 as they appear.

    Args:
      document_P: number of each piece's document, from 0 on; pieces of one document have the same.
      length_P: tokens of each piece; the first begins at index 1, behind the anchor.
      mask: one of MASKS; under `full` all documents are one.
      window: tokens of a window; None cuts nothing.
    """
    segment_ids_T = np.full(seq_len, PAD_SEGMENT, np.int32)
    segment_ids_T[0] = 0
    own_P = 1 + document_P if mask != "full" else np.zeros_like(length_P)
    segment_ids_T[1 : 1 + length_P.sum()] = np.repeat(own_P, length_P)
    return segment_ids_T if window is None else cut(segment_ids_T, window)


def cut(segment_ids_T: np.ndarray, window: int) -> np.ndarray:
    """Returns the segments of a row whose documents are cut into windows: int32 [T], numbered as they appear.

    Args:
      segment_ids_T: int32, the row's documents; padding lies at its end.
    """
    size = int(np.count_nonzero(segment_ids_T != PAD_SEGMENT))
    if window >= size:
        return segment_ids_T
    windows_T = np.arange(size) // window
    pairs_T = segment_ids_T[:size].astype(np.int64) * (windows_T[-1] + 1) + windows_T
    starts_R, length_R = _runs(pairs_T)
    _, first_D, pair_R = np.unique(pairs_T[starts_R], return_index=True, return_inverse=True)
    number_D = np.empty(len(first_D), np.int32)
    number_D[np.argsort(first_D)] = np.arange(len(first_D))
    return np.concatenate([np.repeat(number_D[pair_R], length_R), segment_ids_T[size:]])


def visible(segment_ids_T: np.ndarray, num_anchors: int) -> np.ndarray:
    """Returns how many keys each token sees in a layer without a window, itself among them: int32 [T], 0 for padding.

    These are the tokens of its segment up to itself, wherever they lie in the row, and the anchor, if there is one.
    """
    starts_R, length_R = _runs(segment_ids_T)
    segment_R = segment_ids_T[starts_R]
    order = np.argsort(segment_R, kind="stable")
    before_R = np.cumsum(length_R[order]) - length_R[order]
    before_R -= before_R[np.searchsorted(segment_R[order], segment_R[order])]
    shift_R = np.empty_like(before_R)
    shift_R[order] = before_R  # tokens of the segment before the run
    shift_R -= starts_R
    visible_T = np.arange(1, len(segment_ids_T) + 1) + np.repeat(shift_R, length_R)
    visible_T[1:] += num_anchors
    visible_T[segment_ids_T == PAD_SEGMENT] = 0
    return visible_T.astype(np.int32)


def _runs(values_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of equal values begins, and its length: int64 [R]."""
    starts_R = np.flatnonzero(np.diff(values_T, prepend=values_T[0] - 1))
    return starts_R, np.diff(starts_R, append=len(values_T))
