"""RoPE positions of a packed row: one function for each name that `data.positions` may have.

    tokens     A  a  b  c  d  e  .  .        . = padding
    continue   0  1  2  3  4  5  6  7        the index in the row
    reset      0  0  1  2  0  1  6  7        the index in the document's part of this row
    pose       0  1  2  9 10 14 15 16        chunks a b | c and d | e, skips of 6 and 3, of 12 in all
    skipalign  0  1  2  7  8 11 12 13        answers c and e, skips of 4 and 2 in front of them

A transform returns int32 [T] in [0, max_position), which `RowPacker` checks. It must be a pure function of its
arguments. Positions never decide visibility: that is the segment ids' part.

`continue` and `reset` are here. Every other transform is a file with a function `positions`. Its folder says whether it
skips positions, so that the configuration knows without importing it:

    NAME.py             positions are below seq_len
    skipping/NAME.py    some positions below data.max_position are skipped, and may be drawn at random
"""

import dataclasses
import importlib
from collections.abc import Callable

import numpy as np

from anchorjax import types
from anchorjax.config import DataConfig


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """What the configuration says about the positions of all rows.

    Attributes:
      seq_len: T, tokens of a row with the anchor.
      max_position: positions must be smaller.
      config: the section `data`, in which a transform may have keys of its own.
    """

    seq_len: int
    max_position: int
    config: DataConfig


@dataclasses.dataclass(frozen=True)
class RowPieces:
    """Where documents lie in one row: int64 [P] each, pieces in the order of the row.

    Without `interleave` each document is one piece. The part of a document that lies in another row has no part here.

    Attributes:
      document: number of the piece's document, from 0 as they appear.
      start: index in the row of the piece's first token; the anchor is at 0, and padding follows the last piece.
      before: tokens of the same document in this row before the piece.
      length: tokens of the piece, 1 or more.
      trained_T: bool [T], whether each token of the row is one to train on: in conversations, the assistant's. None
        for texts, which are trained on as a whole.
    """

    document: np.ndarray
    start: np.ndarray
    before: np.ndarray
    length: np.ndarray
    trained_T: np.ndarray | None = None


def continued(pieces: RowPieces, spec: RowSpec, rng: np.random.Philox) -> np.ndarray:
    """0 .. T - 1."""
    return np.arange(spec.seq_len, dtype=np.int32)


def reset(pieces: RowPieces, spec: RowSpec, rng: np.random.Philox) -> np.ndarray:
    """Each document counts its tokens in this row from 0. The anchor is at 0; padding has its index in the row."""
    positions_T = np.arange(spec.seq_len, dtype=np.int32)
    size = 1 + int(pieces.length.sum())
    positions_T[1:size] -= np.repeat((pieces.start - pieces.before).astype(np.int32), pieces.length)
    return positions_T


Transform = Callable[[RowPieces, RowSpec, np.random.Philox], np.ndarray]


def _in_file(name: str) -> Transform:
    folder = f"{__name__}.skipping" if name in types.SKIPPING else __name__
    return importlib.import_module(f"{folder}.{name}").positions


_HERE: dict[str, Transform] = {"continue": continued, "reset": reset}
POSITIONS = _HERE | {name: _in_file(name) for name in types.POSITIONS if name not in _HERE}
