"""Attention of few queries to many cached keys: dense, as no tile would be filled.

A step of decoding reads every key once and multiplies it by G queries only, so that memory is what it costs; there is
nothing to skip but what lies behind the last token, which buckets of cache lengths bound to a half.
"""

import jax
import jax.numpy as jnp

from anchorjax import precision
from anchorjax.attention.anchors import NOTHING, softcap
from anchorjax.masks import Mask


def attend(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> jax.Array:
    """softmax(q k' / sqrt(H)) v over the allowed keys: [B, T, N, H] in q's dtype, on one device.

    Keys are read in their own dtype, sums are fp32. A query that sees no key (padding) gives zeros. O(T S) memory. The
    contract is that of `attention.attention`, without gradients. But padding must hold finite numbers: to clear it
    would take a pass over the cache for each token.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = (q_BTNH.astype(jnp.float32) * H**-0.5).astype(q_BTNH.dtype).reshape(B, T, K, N // K, H)
    scores_BKGTS = precision.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    scores_BKGTS, _ = softcap(scores_BKGTS, mask.soft_cap)
    allowed_B11TS = mask.materialize()[:, None, None]
    scores_BKGTS = jnp.where(allowed_B11TS, scores_BKGTS, -jnp.inf)
    top_BKGT1 = jnp.maximum(jnp.max(scores_BKGTS, -1, keepdims=True), NOTHING)
    weights_BKGTS = jnp.exp(scores_BKGTS - top_BKGT1)
    total_BKGT = jnp.sum(weights_BKGTS, -1)
    out_BKGTH = precision.einsum(
        "bkgts,bskh->bkgth", weights_BKGTS.astype(v_BSKH.dtype), v_BSKH, preferred_element_type=jnp.float32
    )
    out_BKGTH /= jnp.where(total_BKGT > 0, total_BKGT, 1.0)[..., None]
    return jnp.moveaxis(out_BKGTH, 3, 1).reshape(B, T, N, H).astype(q_BTNH.dtype)
