"""How often each RoPE distance is trained: d = position of a query - position of a key that it sees.

A distance that no row holds is a rotation that the model never learns. Two numbers say how well d is covered:

    probability    that a row holds at least one visible pair at distance d
    pairs          the expected number of such pairs in a row: the share of training that d gets

Anchors and documents as keys are counted apart. An anchor sees and is seen at position 0, so its distances are the
positions of all tokens of the row, whereas a document's own distances end with its length unless positions skip.

`measure` counts rows of a packer. The others are exact:

    planned      `continue` and `reset`, over all rows of an epoch, from the lengths of documents alone
    pose         PoSE with two chunks, for a row of documents of given lengths
    skipalign    SkipAlign, for a row of one conversation that has one place to skip at

Only `measure` serves rows with `interleave`, PoSE with more chunks, and SkipAlign with several skips in a row: there
a pair's distance is a sum of dependent draws. Layers with a sliding window are counted by `count` and `measure`.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from anchorjax.data.rows.packing import RowPacker
from anchorjax.data.rows.row_plan import RowPlan, ranges
from anchorjax.masks import anchors_of
from anchorjax.types import PAD_SEGMENT

_BLOCK = 2**19  # pairs of runs that are counted at a time, 100 MB
MOST_DRAWING = 6  # documents of a row whose 720 orders `pose` goes through


@dataclasses.dataclass(frozen=True)
class Curve:
    """How often some distances occur: both float64 [D]; see the top of the file."""

    probability_D: np.ndarray
    pairs_D: np.ndarray


@dataclasses.dataclass(frozen=True)
class Distances:
    """Curves of the two kinds of keys; `anchor` is None under a mask without an anchor."""

    documents: Curve
    anchor: Curve | None


def count(
    segment_ids_T: np.ndarray,
    positions_T: np.ndarray,
    num_anchors: int,
    distances_D: np.ndarray,
    window: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Visible pairs of a row at each distance, int64 [D] each: those with document keys, and those with anchor keys.

    A row is cut into runs, in which segment and positions go on by one. The distances between two runs of A and B
    tokens are a trapezoid, a sum of four ramps, so that no pair of tokens is visited: a row of 128K tokens takes
    a millisecond. A pair of a token with itself is at distance 0.

    Args:
      segment_ids_T, positions_T: of a row in its own order (`Row`).
      num_anchors: leading tokens that every later token sees; they must be at position 0.
      distances_D: 0 or more. Negative distances, which a full mask has where positions reset, cannot be asked for.
      window: keys of its document that a query sees, itself among them; None: all. Anchors stay in sight.
    """
    distances_D = np.asarray(distances_D, np.int64)
    begins_T = np.ones(len(segment_ids_T), bool)
    begins_T[1:] = (np.diff(segment_ids_T) != 0) | (np.diff(positions_T) != 1)
    begins_T[num_anchors : num_anchors + 1] = True
    index_R = np.flatnonzero(begins_T)
    length_R = np.diff(index_R, append=len(segment_ids_T))
    real_R = segment_ids_T[index_R] != PAD_SEGMENT
    runs = [values_R[real_R] for values_R in (index_R, length_R, positions_T[index_R].astype(np.int64))]
    index_R, length_R, position_R = runs
    anchor_D = np.zeros(len(distances_D), np.int64)
    if num_anchors:
        ends = np.searchsorted(np.sort(position_R + length_R), distances_D, side="right")
        anchor_D = np.searchsorted(np.sort(position_R), distances_D, side="right") - ends
    of_documents = index_R >= num_anchors
    index_R, length_R, position_R = (values_R[of_documents] for values_R in runs)
    documents_D = np.zeros(len(distances_D), np.int64)
    for query, key in _pairs_of_runs(segment_ids_T[index_R]):
        between = position_R[query] - position_R[key]
        hidden = None if window is None else window + between - (index_R[query] - index_R[key])
        documents_D += _trapezoids(between, length_R[query], length_R[key], hidden, distances_D)
    return documents_D, anchor_D


def _pairs_of_runs(segment_R: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of runs (query, key) of one segment, the key not behind the query, some at a time."""
    order_R = np.argsort(segment_R, kind="stable")
    first_R = np.searchsorted(segment_R[order_R], segment_R[order_R])
    keys_R = np.arange(len(order_R)) - first_R + 1
    block_R = np.cumsum(keys_R) // _BLOCK
    for some in np.split(np.arange(len(order_R)), np.flatnonzero(np.diff(block_R)) + 1):
        yield order_R[np.repeat(some, keys_R[some])], order_R[ranges(first_R[some], keys_R[some])]


def _trapezoids(
    between: np.ndarray, queries: np.ndarray, keys: np.ndarray, hidden: np.ndarray | None, distances_D: np.ndarray
) -> np.ndarray:
    """Pairs at each distance of runs of so many queries and keys whose first tokens are `between` apart: int64 [D].

    A run with itself gives a triangle, of which the distances from 0 on are causal. From `hidden` on there is none.
    """
    low = between - keys + 1
    # Each ramp adds weight * (d - start + 1) from d = start on.
    starts = np.concatenate([low, low + queries, between + 1, between + 1 + queries])
    weights = np.repeat([1, -1, -1, 1], len(between))
    if hidden is not None:
        ends = np.tile(hidden, 4)
        starts, weights, ends = (values[starts < ends] for values in (starts, weights, ends))
        reached = ends - starts + 1  # what a ramp has risen to there, and is taken off again, as is its slope
        weights = np.concatenate([weights, -weights * reached, weights * (reached - 1)])
        starts = np.concatenate([starts, ends, ends + 1])
    order = np.argsort(starts)
    starts, weights = starts[order], weights[order]
    slope = np.concatenate([[0], np.cumsum(weights)])
    level = np.concatenate([[0], np.cumsum(weights * (starts - 1))])
    at_D = np.searchsorted(starts, distances_D, side="right")
    return slope[at_D] * distances_D - level[at_D]


def measure(packer: RowPacker, rows: Sequence[int], distances_D: np.ndarray, window: int | None = None) -> Distances:
    """Counts the pairs of some rows, whose positions are drawn from the packer's seed as in training.

    A row of packer epoch e > 0 holds other draws, so any number of rows can be counted.

    Raises ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("rows are empty; a probability needs at least one")
    num_anchors = anchors_of(packer.mask)
    held, pairs = np.zeros((2, len(distances_D))), np.zeros((2, len(distances_D)))
    for index in rows:
        row = packer.row(index)
        found = np.stack(count(row.segment_ids_T, row.positions_T, num_anchors, distances_D, window))
        held += found > 0
        pairs += found
    documents, anchor = (Curve(h / len(rows), p / len(rows)) for h, p in zip(held, pairs, strict=True))
    return Distances(documents, anchor if num_anchors else None)


def is_planned(mask: str, positions: str, interleave: int) -> bool:
    """Whether `planned` knows the distances of such rows."""
    return not interleave and (positions == "continue" or (positions == "reset" and mask != "full"))


def planned(plan: RowPlan, mask: str, positions: str, distances_D: np.ndarray) -> Distances:
    """The distances of all rows of an epoch: exact for a row that is drawn from them.

    With documents of l tokens in a row, its pairs at d are sum max(l - d, 0), which is the f(d) of STRING (arXiv
    2410.18745, Section 3), and it holds d if its longest document is longer. Under the mask `full` a row is one
    document, with its anchor. Rows must not be interleaved.

    Raises ValueError unless `is_planned(mask, positions, 0)`.
    """
    if not is_planned(mask, positions, 0):
        raise ValueError(f"mask {mask!r} with positions {positions!r} has no exact distances; allowed: continue, reset")
    length_P, rows = plan.pieces.length, plan.num_rows
    row_P = np.repeat(np.arange(rows), np.diff(plan.first_piece))
    size_N = 1 + np.bincount(row_P, weights=length_P, minlength=rows).astype(np.int64)
    longest_N = np.zeros(rows, np.int64)
    np.maximum.at(longest_N, row_P, length_P)
    if mask == "full":
        return Distances(Curve(_longer(size_N, distances_D) / rows, _triangles(size_N, distances_D) / rows), None)
    documents = Curve(_longer(longest_N, distances_D) / rows, _triangles(length_P, distances_D) / rows)
    if not anchors_of(mask):
        # The first token of a row sees itself alone.
        alone_D = np.asarray(distances_D) == 0
        return Distances(Curve(np.where(alone_D, 1.0, documents.probability_D), documents.pairs_D + alone_D), None)
    if positions == "continue":
        share_D = _longer(size_N, distances_D) / rows
        return Distances(documents, Curve(share_D, share_D))
    itself_D = np.asarray(distances_D) == 0
    held_D = np.maximum(documents.probability_D, itself_D)
    return Distances(documents, Curve(held_D, _longer(length_P, distances_D) / rows + itself_D))


def _longer(lengths: np.ndarray, distances_D: np.ndarray) -> np.ndarray:
    """How many lengths are above each distance: int64 [D]."""
    return len(lengths) - np.searchsorted(np.sort(lengths), distances_D, side="right")


def _triangles(lengths: np.ndarray, distances_D: np.ndarray) -> np.ndarray:
    """The sum of max(length - d, 0) at each distance: int64 [D]."""
    lengths = np.sort(lengths)
    above = np.append(np.cumsum(lengths[::-1])[::-1], 0)
    at_D = np.searchsorted(lengths, distances_D, side="right")
    return above[at_D] - (len(lengths) - at_D) * np.asarray(distances_D)


def pose(
    lengths: Sequence[int], budget: int, distances_D: np.ndarray, cuts: Sequence[np.ndarray] | None = None
) -> Curve:
    """PoSE of two chunks in a row of documents of these lengths, document keys: exact.

    A document of n tokens is cut before a token c of it, c uniform in {1, ..., n - 1}, and skips u positions there. Its
    chunks hold the distances below max(c, n - c), and pairs across the cut those from u + 1 to u + n - 1, whatever
    c is. Documents draw u one after another in random order, each uniform in {0, ..., what is left of the budget}.
    So the probability goes through the orders of documents and, for each, the distribution of what is left. The
    expected number of pairs needs only the distribution of the k-th draw.

    Args:
      lengths: tokens of each document, anchor not counted.
      budget: max_position - T.
      distances_D: 0 or more.
      cuts: the cuts c of each document, equally likely; None: all. The authors' code has 1, ..., ceil(n / 2).

    Raises ValueError for more than MOST_DRAWING documents of two tokens or more.
    """
    cuts = [np.arange(1, n) for n in lengths] if cuts is None else cuts
    drawing = [(n, cuts_C) for n, cuts_C in zip(lengths, cuts, strict=True) if n > 1]
    if len(drawing) > MOST_DRAWING:
        raise ValueError(f"{len(drawing)} documents draw skips; allowed: up to {MOST_DRAWING}")
    distances_D = np.asarray(distances_D, np.int64)
    orders = collections.Counter(itertools.permutations([(n, tuple(cuts_C.tolist())) for n, cuts_C in drawing]))
    missed_D = np.zeros(len(distances_D))
    for order, times in orders.items():
        missed_D += times * _pose_missed(order, budget, distances_D)
    missed_D /= math.factorial(len(drawing))
    probability_D = np.where(
        distances_D == 0, 1.0 * (len(lengths) > 0), np.maximum(1.0 - missed_D, 0)
    )  # rounding: -2e-16
    pairs_D = np.full(len(distances_D), 0.0) + (len(lengths) - len(drawing)) * (distances_D == 0)
    skip_U = _mean_skip(len(drawing), budget)
    for n, cuts_C in drawing:
        pairs_D += _pose_pairs(n, cuts_C, skip_U, distances_D)
    return Curve(probability_D, pairs_D)


def _pose_missed(order: Sequence[tuple[int, Sequence[int]]], budget: int, distances_D: np.ndarray) -> np.ndarray:
    """The probability that documents that draw in this order hold no pair at a distance, float64 [D]."""
    within = []
    for n, cuts in order:
        cuts_C = np.array(cuts)
        within.append(_longer(np.maximum(cuts_C, n - cuts_C), distances_D) / len(cuts_C))
    left_B = np.arange(budget + 1)
    missed_D = np.zeros(len(distances_D))
    for place, d in enumerate(distances_D.tolist()):
        chance_B = (left_B == budget).astype(float)  # of what is left of the budget, and no pair so far
        for (n, _), within_D in zip(order, within, strict=True):
            if within_D[place] == 1:
                chance_B = np.zeros(1)
                break
            draw_B = np.concatenate([[0], np.cumsum(chance_B / (left_B + 1))])
            low, high = max(d - n + 1, 0), max(d, 0)  # skips from low to high - 1 make a pair
            hit_B = draw_B[np.minimum(left_B + high, budget + 1)] - draw_B[np.minimum(left_B + low, budget + 1)]
            chance_B = (1 - within_D[place]) * (draw_B[-1] - draw_B[:-1] - hit_B)
        missed_D[place] = chance_B.sum()
    return missed_D


def _mean_skip(documents: int, budget: int) -> np.ndarray:
    """The distribution of a document's skip, float64 [budget + 1], whichever of them draws first."""
    left_B, mean_B = np.zeros(budget + 1), np.zeros(budget + 1)
    left_B[budget] = 1
    for _ in range(documents):
        # A draw and what it leaves have the same distribution.
        left_B = np.cumsum((left_B / np.arange(1, budget + 2))[::-1])[::-1]
        mean_B += left_B / documents
    return mean_B


def _pose_pairs(n: int, cuts_C: np.ndarray, skip_U: np.ndarray, distances_D: np.ndarray) -> np.ndarray:
    """The expected pairs of a document of n tokens whose skip has the distribution `skip_U`: float64 [D]."""
    apart_n = np.arange(n)
    within_n = (_triangles(cuts_C, apart_n) + _triangles(n - cuts_C, apart_n)) / len(cuts_C)
    across_n = n - apart_n - within_n  # of pairs that would be so far apart without the skip
    size = len(skip_U) + n - 1
    transform = np.fft.rfft(skip_U, size) * np.fft.rfft(across_n, size)
    result = np.maximum(np.fft.irfft(transform, size), 0)  # rounding leaves values around -1e-12
    result[:n] += within_n
    return np.append(result, 0)[np.minimum(distances_D, size)]


def pose_anchor(length: int, budget: int, distances_D: np.ndarray) -> Curve:
    """PoSE of two chunks in a row of one document of `length` >= 2 tokens, the anchor as key: exact.

    Token k of the document is at position 1 + k, and 1 + k + u from the cut c on: a position is taken by at most one
    token, so that pairs and probability are equal.
    """
    cuts_C = np.arange(1, length)
    share_D = np.zeros(len(distances_D))
    for place, d in enumerate(np.asarray(distances_D).tolist()):
        skips_C = np.minimum(budget, d - cuts_C - 1) - max(d - length, 0) + 1
        share_D[place] = np.where(cuts_C >= d, 1.0, np.maximum(skips_C, 0) / (budget + 1)).mean()
    return Curve(share_D, share_D)


def skipalign(before: int, behind: int, budget: int, share: float, distances_D: np.ndarray) -> Curve:
    """SkipAlign in a row of one conversation that has one place to skip at, document keys: exact.

    It is PoSE with one cut, in a share of the conversations, as a single skip is uniform in {0, ..., budget}.

    Args:
      before, behind: tokens in front of that place and from it on, 1 or more each.
      budget: max_position - T.
      share: data.skipalign_share.
    """
    n = before + behind
    skipped = pose([n], budget, distances_D, [np.array([before])])
    plain_D = np.maximum(n - np.asarray(distances_D), 0)
    return Curve(
        (1 - share) * (plain_D > 0) + share * skipped.probability_D, (1 - share) * plain_D + share * skipped.pairs_D
    )
