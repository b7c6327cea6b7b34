"""AnchorAttention for NVIDIA GPUs: Pallas Triton kernels, driven by the plan's lists of live tiles.

One program per block of queries and head (forward; dq) or block of keys and key head (dk and dv together, over
the query heads that share it: keys are never repeated, and nothing is added by two programs, so gradients are
the same in every run). Each walks its tile's stretch of the list, so a dead tile costs nothing; tiles that are
wholly visible skip the mask. The anchor keys are 16 or more keys in front of the forward pass's softmax.

q, k, v are read where they lie: [B, T, N, H], head widths padded to a power of two by masked loads, rows that no
tile divides by masked rows. Pallas computes addresses in 64 bits for arrays above 4 GB and in 32 bits below,
where they suffice: no row is too long for them.

The delta of the backward pass and the anchors' gradients are in `attention.gradient`. A Hopper kernel (Mosaic
GPU, warp-specialised wgmma) would be a package beside this one with the same `apply`.

Letters: X query tokens and Y key tokens of all rows, each row padded to tiles; t, s tokens of one block of
queries and of keys. Sources: FlashAttention-2 (arXiv 2307.08691, Algorithms 1 and 2), exponentials to base 2.
"""

import contextlib

import jax

from anchorjax.attention import gradient
from anchorjax.attention.pallas_gpu import backward, forward
from anchorjax.attention.pallas_gpu.arrays import Arrays
from anchorjax.attention.pallas_gpu.tile import interpret_context
from anchorjax.attention.plan import Plan
from anchorjax.attention.tiles import WIDEST


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of one device's arrays; the contract is that of `attention.attention_with_lse`.

    Off the GPU it runs inside `interpreted()` only.

    Raises:
      NotImplementedError: heads wider than 256.
    """
    widest = WIDEST["pallas_gpu"]
    if q_BTNH.shape[-1] > widest:
        raise NotImplementedError(f"attention pallas_gpu: q has shape {q_BTNH.shape}; allowed: heads of 1 to {widest}")
    return gradient.attend(_forward, _backward, q_BTNH, k_BSKH, v_BSKH, plan)


def interpreted() -> contextlib.AbstractContextManager:
    """Inside it kernels are run by XLA, statement by statement, on any backend: for tests, never chosen by itself.

    What counts is where a function is traced, as with `pltpu.force_tpu_interpret_mode`; the mode is part of jit's
    cache key, so a function jitted outside is traced again inside. A VJP taken inside must be called inside.
    """
    return interpret_context(True)


def _forward(q_BTNH, k_BSKH, v_BSKH, plan):
    return forward.call(Arrays(q_BTNH, k_BSKH, v_BSKH, plan))


def _backward(q_BTNH, k_BSKH, v_BSKH, plan, dout_BTNH, lse_BTN, delta_BTN):
    return backward.call(Arrays(q_BTNH, k_BSKH, v_BSKH, plan), dout_BTNH, lse_BTN, delta_BTN)
