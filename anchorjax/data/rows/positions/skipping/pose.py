"""Skips inside documents, so that short rows hold the positions of long ones: PoSE (arXiv 2309.10400, Section 3)."""

import numpy as np

from anchorjax.data.rows.positions import RowPieces, RowSpec
from anchorjax.data.rows.positions.skipping._jumps import jump
from anchorjax.data.rows.row_plan import ranges


def positions(pieces: RowPieces, spec: RowSpec, rng: np.random.Philox) -> np.ndarray:
    """Each document skips positions where its chunks begin.

    Each document is cut into `data.pose_chunks` chunks at points drawn uniformly (equal points count as one), and
    positions jump where a chunk begins. The anchor stays at 0 and is in no chunk. All jumps of a row add up to at most
    max_position - T, so positions rise strictly along the row, by 1 except at the beginning of a chunk, and stay below
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
    shape = len(documents_O), spec.config.pose_chunks - 1
    inner_O1 = (length_D[documents_O] - 1).astype(np.uint64)[:, None]
    cuts_OC = np.sort(1 + (rng.random_raw(shape[0] * shape[1]).reshape(shape) % inner_O1).astype(np.int64), axis=1)
    draws = rng.random_raw(cuts_OC.size).tolist()

    by_document = np.lexsort((pieces.before, pieces.document))
    index_of_token = ranges(pieces.start[by_document], pieces.length[by_document])  # by document and place in it
    first_O1 = (np.cumsum(length_D) - length_D)[documents_O][:, None]
    chunk_starts = index_of_token[first_O1 + cuts_OC].ravel().tolist()

    skips = []
    left = spec.max_position - spec.seq_len
    for draw in draws:
        if not left:  # after about log2(budget) draws
            break
        skips.append(draw % (left + 1))
        left -= skips[-1]
    return jump(spec.seq_len, chunk_starts[: len(skips)], skips)
