"""How many keys the targets of an epoch see, from the plan and which tokens are trained on: no token is read.

A token's visible context is the number of keys that its query sees in a layer without a window, itself among them: the
anchor under the mask `anchor`, and the tokens of its document in this row up to itself; under `full`, all tokens of the
row up to itself. Contexts are counted in buckets: bucket k holds 2^k to 2^(k + 1) - 1 keys.
"""

import dataclasses

import numpy as np

from anchorjax.data.rows.row_plan import RowPlan

_AT_ONCE = 2**24  # at least so many tokens, if all pieces are as long as a row


@dataclasses.dataclass(frozen=True)
class Flags:
    """Which tokens of a store are trained on: `trained`, bool [num_tokens], and the store's `offsets`."""

    trained: np.ndarray
    offsets: np.ndarray


def by_bucket(
    plan: RowPlan,
    doc_lengths: np.ndarray,
    tags: np.ndarray,
    seq_len: int,
    mask: str,
    boundary: bool,
    flags: Flags | None = None,
) -> np.ndarray:
    """Targets of an epoch by bucket of their visible context, int64 [K], K the bits of `seq_len`.

    `interleave` does not change these numbers: a document's tokens stay in their row and in their order. Two cases are
    counted as if it were 0: the anchor's target, which sees one key, and all contexts under the mask `full`.

    Args:
      doc_lengths: tokens of each document of the store, those of its tag among them.
      tags: tokens of each document's tag.
      boundary: whether a document's last token has the next document's first as target.
      flags: only tokens that are trained on are targets; None: all may be.
    """
    document_P, offset_P, length_P = plan.pieces
    tag_P = tags[document_P]
    is_first_P = np.zeros(len(document_P), bool)
    is_first_P[plan.first_piece[:-1]] = True
    begins_P = (offset_P == 0) & (tag_P == 0)
    crosses_P = np.append((begins_P & ~is_first_P)[1:], False) & boundary
    # Of a piece's tokens those from `low` on have a target, up to `high`: no tag is a target.
    low_P = np.clip(tag_P - offset_P - 1, 0, length_P)
    crosses_P = crosses_P & (offset_P + length_P == doc_lengths[document_P])
    high_P = np.maximum(length_P - (offset_P + length_P == doc_lengths[document_P]), low_P)
    if mask == "full":
        end_P = np.cumsum(length_P)
        rows = np.repeat(np.arange(plan.num_rows), np.diff(plan.first_piece))
        base_P = 2 + end_P - length_P - (end_P - length_P)[plan.first_piece[:-1]][rows]
    else:
        base_P = np.full(len(document_P), 2 if mask == "anchor" else 1)
    edges_K, num_pieces = 2 ** np.arange(seq_len.bit_length() + 1), max(1, _AT_ONCE // seq_len)

    def first_of(some_Q: np.ndarray) -> np.ndarray:
        """First token of each piece in each bucket that has a target: int64 [Q, K + 1]."""
        return np.clip(edges_K - base_P[some_Q, None], low_P[some_Q, None], high_P[some_Q, None])

    result_K = np.zeros(len(edges_K) - 1, np.int64)
    starts_P = np.ones(len(document_P), bool)
    target_P = np.arange(len(document_P))
    if flags:
        target_P = flags.offsets[document_P] + offset_P - tag_P + 1  # of the piece's first token
        starts_P = flags.trained[flags.offsets[document_P]]
    order_P = np.argsort(target_P, kind="stable")
    for some_Q in np.split(order_P, range(num_pieces, len(order_P), num_pieces)):
        at_QK = first_of(some_Q)
        if flags:
            begin = max(0, int(target_P[some_Q[0]]))
            end = int((target_P + high_P)[some_Q].max())
            before = np.concatenate([[0], np.cumsum(flags.trained[begin:end], dtype=np.int32)])
            at_QK = before[np.clip(target_P[some_Q, None] + at_QK - begin, 0, len(before) - 1)]
        result_K += np.diff(at_QK).sum(0)
    # Targets that are the first token of a document: that of another document's last token, and the anchor's.
    last_P = base_P + length_P - 1
    seen_P = last_P[crosses_P & np.append(starts_P[1:], False)]
    result_K += np.bincount(np.frexp(seen_P)[1] - 1, minlength=len(result_K))
    result_K[0] += np.count_nonzero(begins_P & is_first_P & starts_P)
    return result_K


def name_bucket(k: int) -> str:
    """In keys, as in "512-1023"."""
    return f"{2**k}-{2 ** (k + 1) - 1}" if k else "1"


def name_share(share: float) -> str:
    """In percent, as in "12.5%". A share above 0 is never called "0.0%"."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def shares(targets_K: np.ndarray) -> np.ndarray:
    """Returns the share of all targets in each bucket, float64 [K]; zeros if there are no targets."""
    return targets_K / max(targets_K.sum(), 1)


def describe(targets_K: np.ndarray) -> str:
    """Returns one line: the share of targets in each bucket from 64 keys on that has targets."""
    share_K = shares(targets_K)
    named = [f"below 64 {name_share(share_K[:6].sum())}"]
    named += [f"{name_bucket(k)} {name_share(share_K[k])}" for k in range(6, len(share_K)) if targets_K[k]]
    return f"targets by the keys that they see: {', '.join(named)}"
