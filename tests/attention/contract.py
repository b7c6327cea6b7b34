"""What every implementation of attention is tested with: layouts, arrays and the float64 oracle."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from anchorjax.masks import Mask


@dataclasses.dataclass(frozen=True)
class Case:
    """One call's arrays; `cotangent` is random, so that the VJP is tested in every direction at once."""

    q: jnp.ndarray
    k: jnp.ndarray
    v: jnp.ndarray
    cotangent: jnp.ndarray
    mask: Mask


def make_case(
    segments_BT: np.ndarray,
    num_anchors: int,
    N: int,
    K: int,
    H: int,
    dtype="float32",
    seed=0,
    window=None,
    soft_cap=None,
) -> Case:
    rng = np.random.default_rng(seed)
    B, T = segments_BT.shape
    q, k, v, cotangent = (jnp.asarray(rng.normal(size=(B, T, heads, H)), dtype) for heads in (N, K, K, N))
    return Case(
        q, k, v, cotangent, Mask.from_segments(jnp.asarray(segments_BT, jnp.int32), num_anchors, window, soft_cap)
    )


# One row length and few head shapes, so that a hundred drawn layouts share a handful of compilations.
T = 83  # a prime: no tile divides it
HEADS = [(4, 2, 16), (2, 2, 8), (6, 2, 8), (3, 1, 16)]
BENDS = [(None, None), (7, None), (None, 2.0), (20, 3.0)]  # window, soft cap; one for each of HEADS


@st.composite
def layouts(draw, rows: int = 2) -> tuple[np.ndarray, int]:
    """Segment ids [rows, T] and the number of anchors: contiguous or interleaved documents, pads, dead rows."""
    num_anchors = draw(st.integers(0, 2))
    table = []
    for _ in range(rows):
        kind = draw(st.sampled_from(["contiguous", "interleaved", "dead", "one"]))
        pads = draw(st.integers(0, T - num_anchors)) if draw(st.booleans()) else 0
        if kind == "dead":
            table.append(np.full(T, -1))
            continue
        body = T - num_anchors - pads
        pieces = np.array([draw(st.integers(1, 30)) for _ in range(8)])
        documents = np.repeat(np.arange(1, 9), pieces)
        documents = np.resize(documents, body) if kind == "interleaved" else np.pad(documents, (0, T), mode="edge")
        if kind == "one":
            documents = np.ones(T, int)
        table.append(np.concatenate([np.zeros(num_anchors), documents[:body], np.full(pads, -1)]))
    return np.array(table, np.int32), num_anchors


def float64_attention(q, k, v, mask: Mask) -> np.ndarray:
    """An independent oracle: numpy, float64, one query at a time, by the words of the rule."""
    q, k, v = (np.asarray(x.astype(jnp.float32), np.float64) for x in (q, k, v))
    segments, A = np.array(mask.q_segment_ids_BT), mask.num_anchors
    B, T, N, H = q.shape
    out = np.zeros_like(q)
    for b, t in np.ndindex(B, T):
        if segments[b, t] == -1:
            continue
        near = [s for s in range(t + 1) if segments[b, s] == segments[b, t] and t - s < (mask.window or T)]
        keys = sorted({*near, *(s for s in range(min(A, t + 1)) if segments[b, s] != -1)})
        for n in range(N):
            kv_head = n // (N // k.shape[2])
            logits = k[b, keys, kv_head] @ q[b, t, n] / np.sqrt(H)
            if mask.soft_cap:
                logits = mask.soft_cap * np.tanh(logits / mask.soft_cap)
            weights = np.exp(logits - logits.max())
            out[b, t, n] = weights @ v[b, keys, kv_head] / weights.sum()
    return out
