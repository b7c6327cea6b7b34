"""What every implementation of attention is tested with: layouts, arrays, how it is run, and the float64 oracle."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from anchorjax.attention import MODULES, attention_with_lse, pallas_gpu
from anchorjax.attention.anchors import NOTHING
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask
from anchorjax.types import IMPLEMENTATIONS

TOLERANCE = 2e-5  # fp32, forward and backward, entries of the order of 1


@dataclasses.dataclass(frozen=True)
class Setting:
    """How an implementation is tested: `T` is no multiple of a tile; kernels are interpreted, hence few examples."""

    T: int
    tiles: tuple[int, int]
    other_tiles: tuple[tuple[int, int], ...]
    examples: int
    interpreted: object = contextlib.nullcontext  # the context in which its kernels run on a CPU


PLAIN = Setting(83, (16, 32), ((8, 64), (64, 8), (128, 128), (83, 83)), 40)  # of XLA alone: any tiles, and fast
OWN = {
    "reference": Setting(83, (16, 32), (), 20),
    "pallas_tpu": Setting(300, (128, 128), ((128, 256), (256, 128)), 4, pltpu.force_tpu_interpret_mode),
    "pallas_gpu": Setting(83, (16, 32), ((64, 16), (128, 128)), 8, pallas_gpu.interpreted),
}
SETTINGS = {name: OWN.get(name, PLAIN) for name in IMPLEMENTATIONS}
for _name, _setting in SETTINGS.items():
    for _tiles in (_setting.tiles, *_setting.other_tiles):
        assert MODULES[_name].supports(*_tiles) is None, (_name, _tiles)
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]


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


# One row length and few head shapes, so that many drawn layouts share a handful of compilations.
HEADS = [(4, 2, 16), (2, 2, 8), (6, 2, 8), (3, 1, 16)]
WINDOWS_AND_SOFTCAPS = [(None, None), (7, None), (None, 2.0), (20, 3.0)]  # window, soft cap; one for each of HEADS
SHAPES = list(zip(HEADS, WINDOWS_AND_SOFTCAPS, strict=True))


@st.composite
def layouts(draw, T: int, rows: int = 2) -> tuple[np.ndarray, int]:
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
        ids = np.repeat(np.arange(1, 9), pieces)
        ids = np.resize(ids, body) if kind == "interleaved" else np.pad(ids, (0, T), mode="edge")
        if kind == "one":
            ids = np.ones(T, int)
        table.append(np.concatenate([np.zeros(num_anchors), ids[:body], np.full(pads, -1)]))
    return np.array(table, np.int32), num_anchors


def documents(T: int, cuts: list[int], anchors: int, pads: int = 0) -> np.ndarray:
    """Segment ids [T] of documents that begin at `cuts`, after anchors and before pads."""
    segments = 1 + np.searchsorted(sorted(cuts), np.arange(T), side="right")
    segments[:anchors] = 0
    segments[T - pads :] = -1
    return segments


def sorted_documents(T: int, rows: int, seed: int, lowest: int = 1) -> np.ndarray:
    """Segment ids [rows, T] of up to four documents of random lengths, in order; the first token is an anchor."""
    segments = np.sort(np.random.default_rng(seed).integers(lowest, 5, (rows, T)), axis=1)
    segments[:, 0] = 0
    return segments


@functools.partial(jax.jit, static_argnames=("implementation", "tiles"))
def forward_and_vjp(q, k, v, cotangent, mask, implementation, tiles):
    plan = make_plan(mask, *tiles)
    apply = lambda q, k, v: attention_with_lse(q, k, v, plan, implementation=implementation)  # noqa: E731
    (out, lse), vjp = jax.vjp(apply, q, k, v)
    # The log-sum-exp's cotangent is part of every gradient here, save where no key is seen.
    return out, lse, *vjp((cotangent, jnp.where(lse > NOTHING, cotangent[..., 0].astype(jnp.float32), 0.0)))


def run(case: Case, implementation: str, tiles: tuple[int, int] | None = None) -> tuple[jax.Array, ...]:
    """(out, lse, dq, dk, dv) for the case's cotangent of the output and of the log-sum-exp."""
    setting = SETTINGS[implementation]
    with setting.interpreted():
        return forward_and_vjp(
            case.q, case.k, case.v, case.cotangent, case.mask, implementation, tiles or setting.tiles
        )


def max_error(got, wanted) -> float:
    """The largest difference; not-a-number if any is, which Python's max and XLA's on a CPU may both lose."""
    return float(np.max([np.max(np.abs(np.asarray(a - b))) for a, b in zip(got, wanted, strict=True)]))


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


def float64_gradients(case: Case) -> tuple[np.ndarray, ...]:
    """(out, dq, dk, dv) in float64 numpy over the dense mask, for `run`'s two cotangents; by hand, without autodiff."""
    arrays = (case.q, case.k, case.v, case.cotangent)
    q, k, v, do = (np.asarray(x.astype(jnp.float32), np.float64) for x in arrays)
    group, H = q.shape[2] // k.shape[2], q.shape[3]
    k, v = (np.repeat(x, group, axis=2) for x in (k, v))
    mask = np.array(case.mask.materialize())[:, None]
    s = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
    slope = np.ones_like(s)
    if cap := case.mask.soft_cap:
        slope = 1 - np.tanh(s / cap) ** 2
        s = cap * np.tanh(s / cap)
    weights = np.exp(np.where(mask, s - s.max(-1, keepdims=True, where=mask, initial=-1e30), -np.inf))
    total = weights.sum(-1, keepdims=True)
    p = weights / np.where(total > 0, total, 1)
    out = np.einsum("bnts,bsnh->btnh", p, v)
    dp = np.einsum("btnh,bsnh->bnts", do, v)
    dlse = np.moveaxis(do[..., 0], 2, 1)[..., None]
    ds = p * (dp - (p * dp).sum(-1, keepdims=True) + dlse) * slope / np.sqrt(H)
    dq = np.einsum("bnts,bsnh->btnh", ds, k)
    dk, dv = np.einsum("bnts,btnh->bsnh", ds, q), np.einsum("bnts,btnh->bsnh", p, do)
    dk, dv = (x.reshape(*x.shape[:2], -1, group, H).sum(3) for x in (dk, dv))
    return out, dq, dk, dv


@jax.custom_vjp
def _bfloat16_cotangent(x):
    return x


_bfloat16_cotangent.defvjp(lambda x: (x, None), lambda _, dx: (dx.astype(jnp.bfloat16).astype(jnp.float32),))


@jax.jit
def dense_bfloat16(q, k, v, do, allowed_BTS):
    """(out, dq, dk, dv) of the plain computation: bf16 matmuls around a softmax in fp32, differentiated by JAX.

    All matmuls have bf16 operands, the backward ones too, as matrix units at their default precision take them;
    a CPU would multiply the fp32 cotangent of the logits unrounded.
    """
    B, T, N, H = q.shape
    K = k.shape[2]

    def forward(q, k, v):
        q = q.reshape(B, T, K, N // K, H)
        s = _bfloat16_cotangent(jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32))
        s = jnp.where(allowed_BTS[:, None, None], s * H**-0.5, -1e30)
        p, lse = jax.nn.softmax(s, -1).astype(jnp.bfloat16), jax.nn.logsumexp(s, -1)
        p = jnp.where(jnp.any(allowed_BTS, -1)[:, None, None, :, None], p, 0)  # a query without a key
        out = jnp.einsum("bkgts,bskh->btkgh", p, v)
        return out.reshape(B, T, N, H), jnp.moveaxis(lse, 3, 1).reshape(B, T, N)

    (out, _), vjp = jax.vjp(forward, q, k, v)
    return out, *vjp((do, do[..., 0].astype(jnp.float32)))
