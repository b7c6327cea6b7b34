"""Rows of documents: how long these are, and how many pairs a query may see."""

import json
from pathlib import Path

import numpy as np

LAYOUTS = ("linux", "equal12")
_LENGTHS = Path(__file__).resolve().parents[1] / "data/linux_doc_lengths.json"
_WHOLE = 8192  # shorter rows, which are for dry runs, get documents shorter in proportion


def document_lengths(layout: str, length: int) -> np.ndarray:
    """Tokens of each document of a row, behind its anchor.

    Args:
      layout: "linux", real lengths (mean 2619) drawn with replacement, the last one cut; "equal12", twelve alike.
    """
    if layout == "equal12":
        return np.diff(np.linspace(0, length - 1, 13).astype(int))
    known = json.loads(_LENGTHS.read_text())["lengths"]
    known = np.maximum(1, np.array(known) * min(length, _WHOLE) // _WHOLE)
    drawn = np.random.default_rng(0).choice(known, size=length // known.min() + 1)
    ends = np.minimum(np.cumsum(drawn), length - 1)
    lengths = np.diff(ends, prepend=0)
    return lengths[lengths > 0]


def segment_ids(lengths: np.ndarray) -> np.ndarray:
    """int32 [1, T]: the anchor is 0."""
    return np.repeat(np.arange(len(lengths) + 1, dtype=np.int32), [1, *lengths])[None]


def live_pairs(lengths: np.ndarray) -> int:
    """That the anchor mask admits: the anchor itself, and of each document the triangle and the anchor's column."""
    return int(1 + np.sum(lengths * (lengths + 1) // 2 + lengths))


def copied_pairs(lengths: np.ndarray) -> int:
    """Live pairs of rows in which every document has a copy of the anchor in front."""
    return int(np.sum((lengths + 1) * (lengths + 2) // 2))


def copied_index(lengths: np.ndarray) -> np.ndarray:
    """Which token of the shared row each token of such a row is."""
    starts = 1 + np.cumsum(lengths) - lengths
    pieces = [np.concatenate([[0], np.arange(start, start + n)]) for start, n in zip(starts, lengths, strict=True)]
    return np.concatenate(pieces)
