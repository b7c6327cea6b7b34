"""RoPE positions of a packed row: one function for each name that `data.positions` may have.

    tokens     A  a  b  c  d  e  .  .        . = padding
    continue   0  1  2  3  4  5  6  7        the index in the row
    reset      0  0  1  2  0  1  6  7        the index in the document's part of this row
    pose       0  1  2  9 10 14 15 16        chunks a b | c and d | e, skips of 6 and 3, of 12 in all

A transform returns int32 [T] in [0, max_position), which `RowPacker` checks. It must be a pure function of its
arguments. Positions never decide visibility: that is the segment ids' part.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from anchorjax.data.rows.row_plan import ranges


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """What the configuration says about the positions of all rows.

    Attributes:
      seq_len: T, tokens of a row with the anchor.
      max_position: positions must be smaller.
      pose_chunks: chunks of a document under `pose`.
    """

    seq_len: int
    max_position: int
    pose_chunks: int


@dataclasses.dataclass(frozen=True)
class RowPieces:
    """Where documents lie in one row: int64 [P] each, pieces in the order of the row.

    Without `interleave` each document is one piece. The part of a document that lies in another row has no part here.

    Attributes:
      document: number of the piece's document, from 0 as they appear.
      start: index in the row of the piece's first token; the anchor is at 0, and padding follows the last piece.
      before: tokens of the same document in this row before the piece.
      length: tokens of the piece, 1 or more.
    """

    document: np.ndarray
    start: np.ndarray
    before: np.ndarray
    length: np.ndarray


def continued(pieces: RowPieces, spec: RowSpec, rng: np.random.Philox) -> np.ndarray:
    """0 .. T - 1."""
    return np.arange(spec.seq_len, dtype=np.int32)


def reset(pieces: RowPieces, spec: RowSpec, rng: np.random.Philox) -> np.ndarray:
    """Each document counts its tokens in this row from 0. The anchor is at 0; padding has its index in the row."""
    positions_T = np.arange(spec.seq_len, dtype=np.int32)
    size = 1 + int(pieces.length.sum())
    positions_T[1:size] -= np.repeat((pieces.start - pieces.before).astype(np.int32), pieces.length)
    return positions_T


def pose(pieces: RowPieces, spec: RowSpec, rng: np.random.Philox) -> np.ndarray:
    """Skips inside documents, so that short rows hold the positions of long ones: PoSE (arXiv 2309.10400, Section 3).

    Each document is cut into `pose_chunks` chunks at points drawn uniformly (equal ones are one), and positions jump
    where a chunk begins. The anchor stays at 0 and is in no chunk. All jumps of a row add up to at most
    max_position - T, so positions rise strictly along the row, by 1 but at the beginning of a chunk, and stay below
    max_position. Padding counts on from the last token.

    The paper has one document a row. There the k-th skip is u_k - u_(k-1), u_k uniform in {u_(k-1), ..., budget}, and
    so it is here. The documents of a packed row draw one after another in random order, each skip uniform in
    {0, ..., what is left of the budget}: the first to draw has the paper's distribution, a second (of two chunks) half
    of that on average, and so on. Some document of each row thus spans long distances, which equal shares would rule
    out for rows of many documents. The order is random so that no place in the row is favoured.

    The authors' code ends the first chunk in the first half of a row; here the cut may lie anywhere, as in the paper.
    A document that `interleave` cut into pieces has its chunks cut in its own tokens, regardless of pieces. Between two
    of its pieces lie other documents' tokens, as in `continue`, and those documents' skips. The part of a document that
    lies in another row is cut there, and skips there, on its own.
    """
    length_D = np.bincount(pieces.document, weights=pieces.length).astype(np.int64)
    documents_O = np.flatnonzero(length_D > 1)  # a document of one token has no place for a cut
    documents_O = documents_O[np.argsort(rng.random_raw(len(documents_O)), kind="stable")]
    shape = len(documents_O), spec.pose_chunks - 1
    inner_O1 = (length_D[documents_O] - 1).astype(np.uint64)[:, None]
    cuts_OC = np.sort(1 + (rng.random_raw(shape[0] * shape[1]).reshape(shape) % inner_O1).astype(np.int64), axis=1)
    draws = rng.random_raw(cuts_OC.size).tolist()

    by_document = np.lexsort((pieces.before, pieces.document))
    index_of_token = ranges(pieces.start[by_document], pieces.length[by_document])  # by document and place in it
    first_O1 = (np.cumsum(length_D) - length_D)[documents_O][:, None]
    chunk_starts = index_of_token[first_O1 + cuts_OC].ravel().tolist()

    skips_T = np.zeros(spec.seq_len, np.int32)
    left = spec.max_position - spec.seq_len
    for index, draw in zip(chunk_starts, draws, strict=True):
        if not left:  # after about log2(budget) draws
            break
        skip = draw % (left + 1)
        skips_T[index] += skip
        left -= skip
    return np.arange(spec.seq_len, dtype=np.int32) + np.cumsum(skips_T, dtype=np.int32)


# The names are in types.POSITIONS, those of transforms that leave positions out in types.SKIPPING.
POSITIONS: dict[str, Callable[[RowPieces, RowSpec, np.random.Philox], np.ndarray]] = {
    "continue": continued,
    "reset": reset,
    "pose": pose,
}
