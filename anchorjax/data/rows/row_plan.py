"""Which piece of which document lies in which row of an epoch.

With rows of 9 tokens behind their anchor and documents of 4, 7, 12 and 5 tokens:

    concat_split   aaaabbbbb bbccccccc cccccdddd d          padding in the last row only; three documents cut
    first_fit      aaaaccc   bbbbbbb   ccccccccc ddddd      a document goes into the first row with room
    best_fit       aaaaddddd bbbbbbb   ccccccccc ccc        the longest first, each into the row with least room

The last two cut only documents longer than a row: such a document fills as many whole rows as it can, and its remainder
is packed like a document of that length. Their rows may come in any order, because each row is trained on by itself.
"""

import dataclasses
import heapq
from typing import NamedTuple

import numpy as np

from anchorjax.data.rows.draws import Stream, draws, permutation


class Pieces(NamedTuple):
    """Pieces of documents in the order in which they lie in a row: int64 [P] each."""

    document: np.ndarray
    offset: np.ndarray  # of the piece's first token in its document
    length: np.ndarray


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """An epoch's pieces, row by row; first_piece[r] is the first of row r."""

    first_piece: np.ndarray  # int64 [num_rows + 1]
    pieces: Pieces

    @property
    def num_rows(self) -> int:
        return len(self.first_piece) - 1

    def row(self, index: int) -> Pieces:
        here = slice(self.first_piece[index], self.first_piece[index + 1])
        return Pieces(*(values[here] for values in self.pieces))


@dataclasses.dataclass(frozen=True)
class PackingReport:
    """What a packing makes of an epoch: `fill` is tokens over places for them, `cut` the share of documents that
    lie in more than one row, `kept` the share of the store's documents in the epoch."""

    rows: int
    fill: float
    cut: float
    kept: float

    def __str__(self) -> str:
        kept = "" if self.kept == 1 else f" and holds {self.kept:.1%} of the documents"
        return (
            f"an epoch has {self.rows:,} rows, is filled to {self.fill:.2%}, cuts {self.cut:.2%} of its documents{kept}"
        )


def report(plan: RowPlan, seq_len: int, num_documents: int) -> PackingReport:
    pieces = np.bincount(plan.pieces.document, minlength=num_documents)
    kept = np.count_nonzero(pieces)
    return PackingReport(
        rows=plan.num_rows,
        fill=float(plan.pieces.length.sum() / (plan.num_rows * (seq_len - 1))),
        cut=float(np.count_nonzero(pieces > 1) / kept),
        kept=float(kept / num_documents),
    )


def make_plan(
    packing: str, documents: np.ndarray, lengths: np.ndarray, capacity: int, seed: int | None, epoch: int
) -> RowPlan:
    """Lays documents, in the order given, into rows of `capacity` tokens behind their anchors.

    Args:
      packing: one of PACKINGS.
      documents: int64 indices; a row holds its pieces in this order, however they came together.
      lengths: their tokens, 1 or more each.
      seed: of the order of rows; None has them in the order of their first documents. Unused by concat_split,
        whose rows are as random as the documents in them.
    """
    if packing == "concat_split":
        return _concat_split(documents, lengths, capacity)
    whole, rest = np.divmod(lengths, capacity)
    ranks = np.arange(len(documents))
    own = Pieces(
        np.repeat(ranks, whole), ranges(np.zeros_like(whole), whole) * capacity, np.full(whole.sum(), capacity)
    )
    some = np.flatnonzero(rest)
    fit = _first_fit if packing == "first_fit" else _best_fit
    bins = np.concatenate([np.arange(len(own.document)), len(own.document) + fit(rest[some], capacity)])
    rank, offset, length = map(np.concatenate, zip(own, (some, whole[some] * capacity, rest[some]), strict=True))
    num_rows = int(bins.max()) + 1
    if seed is None:
        first_rank = rank[np.unique(bins, return_index=True)[1]]  # in a bin, ranks ascend
        row_of_bin = np.empty(num_rows, np.int64)
        row_of_bin[np.argsort(first_rank, kind="stable")] = np.arange(num_rows)
    else:
        row_of_bin = permutation(Stream.ROWS, seed, epoch, num_rows)
    rows = row_of_bin[bins]
    order = np.argsort(rows, kind="stable")
    first_piece = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))])
    return RowPlan(first_piece, Pieces(documents[rank[order]], offset[order], length[order]))


def _concat_split(documents: np.ndarray, lengths: np.ndarray, capacity: int) -> RowPlan:
    """The documents end to end, cut every `capacity` tokens."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    first_row, last_row = starts // capacity, (ends - 1) // capacity
    in_rows = last_row - first_row + 1
    rank, row = np.repeat(np.arange(len(documents)), in_rows), ranges(first_row, in_rows)
    begin = np.maximum(starts[rank], row * capacity)
    end = np.minimum(ends[rank], (row + 1) * capacity)
    first_piece = np.concatenate([[0], np.cumsum(np.bincount(row))])
    return RowPlan(first_piece, Pieces(documents[rank], begin - starts[rank], end - begin))


def _first_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each length, int64: the first with room, in a binary tree of the most room below each node."""
    # No two neighbours could be one, so fewer than 2 * sum / capacity + 1 bins are needed.
    most = min(len(lengths), 2 * int(lengths.sum()) // capacity + 1)
    size = 1 << max(most - 1, 0).bit_length()
    room = [capacity] * (2 * size)
    bins = []
    for length in lengths.tolist():
        node = 1
        while node < size:
            node *= 2
            if room[node] < length:
                node += 1
        bins.append(node - size)
        left = room[node] - length
        room[node] = left
        while node > 1:
            left = max(left, room[node ^ 1])
            node >>= 1
            if room[node] == left:
                break
            room[node] = left
    return np.array(bins, np.int64)


def _best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each length, int64: best fit decreasing.

    Bins of one room and documents of one length are as good as each other. So bins are kept by their room, and a
    step puts as many documents of one length as possible into all bins of the least room that holds one: a bin
    takes them until the next does not fit, as it has the least room from its first one on. A step uses up the
    documents of a length or the bins of a room, which bounds steps by lengths that occur, not documents.
    """
    order = np.argsort(-lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    bins = np.empty(len(lengths), np.int64)  # in the order of `order`
    open_bins: dict[int, list[np.ndarray]] = {}  # by room
    roomy: list[int] = []  # a heap of the rooms that hold the length at hand
    narrow: list[int] = []  # a heap of minus the rooms that do not
    num_bins = at = 0

    def put_back(room: int, some: np.ndarray, heap: list[int], key: int) -> None:
        if room and len(some):
            if room not in open_bins:
                heapq.heappush(heap, key)
            open_bins.setdefault(room, []).append(some)

    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = at + count
        while narrow and -narrow[0] >= length:
            heapq.heappush(roomy, -heapq.heappop(narrow))
        while at < end:
            if roomy:
                room = heapq.heappop(roomy)
                some = np.concatenate(open_bins.pop(room))
            else:
                room = capacity
                some = np.arange(num_bins, num_bins + -(-(end - at) // (capacity // length)))
                num_bins += len(some)
            each = room // length
            full = min(len(some), (end - at) // each)
            bins[at : at + full * each] = np.repeat(some[:full], each)
            at += full * each
            put_back(room - each * length, some[:full], narrow, each * length - room)
            if at < end and full < len(some):  # fewer are left than one bin takes
                bins[at:end] = some[full]
                left = room - (end - at) * length
                put_back(left, some[full : full + 1], roomy, left)
                at, full = end, full + 1
            put_back(room, some[full:], roomy, room)
    result = np.empty_like(bins)
    result[order] = bins
    return result


def interleave(pieces: Pieces, most: int, seed: int, row: int) -> Pieces:
    """Each piece cut into up to `most`, and all of them merged; see `RowPacker.interleave`."""
    document_P, offset_P, length_P = pieces
    start_P = np.cumsum(length_P) - length_P
    whose = np.repeat(np.arange(len(document_P)), most - 1)
    # One of the length - 1 places inside; a piece of one token has none, and 0 is where it begins anyway.
    inside = np.maximum(length_P[whose] - 1, 1)
    cut = np.minimum(
        1 + (draws(Stream.CUTS, seed, row, len(whose)) % inside.astype(np.uint64)).astype(np.int64), length_P[whose] - 1
    )
    begin = np.unique(np.concatenate([start_P, start_P[whose] + cut]))
    end = np.append(begin[1:], length_P.sum())
    whose = np.searchsorted(start_P, begin, side="right") - 1
    cut_up = Pieces(document_P[whose], offset_P[whose] + begin - start_P[whose], end - begin)
    # Every order of "whose piece is next" is equally likely; each document then puts its pieces there in its own.
    places = np.argsort(whose[permutation(Stream.MERGE, seed, row, len(whose))], kind="stable")
    order = np.empty_like(places)
    order[places] = np.arange(len(places))
    return Pieces(*(values[order] for values in cut_up))


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (counts[0] numbers), then from starts[1] on: int64."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total)
