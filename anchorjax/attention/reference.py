"""The definition of correct: dense attention with a materialised mask and softmax in fp32."""

import jax
import jax.numpy as jnp

from anchorjax.attention.plan import Plan
from anchorjax.masks import Mask


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, plan: Plan | None) -> jax.Array:
    """softmax(q k' / sqrt(H)) v over the allowed keys; rows that see nothing are exactly zero.

    O(T S) memory. Inputs are used in fp32 at the highest matmul precision; the result has q's dtype.
    `plan` is ignored: nothing is skipped here.
    """
    del plan
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.astype(jnp.float32).reshape(B, T, K, N // K, H)
    k_BSKH, v_BSKH = k_BSKH.astype(jnp.float32), v_BSKH.astype(jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    logits_BKGTS = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, precision=exact) * H**-0.5
    allowed_BTS = mask.materialize()[:, None, None]
    logits_BKGTS = jnp.where(allowed_BTS, logits_BKGTS, -jnp.inf)
    # A finite maximum even for rows that see nothing, so that no NaN arises in values or gradients.
    max_BKGT = jnp.maximum(jnp.max(logits_BKGTS, -1, keepdims=True), -1e30)
    weights_BKGTS = jnp.where(allowed_BTS, jnp.exp(logits_BKGTS - jax.lax.stop_gradient(max_BKGT)), 0.0)
    total_BKGT = jnp.sum(weights_BKGTS, -1, keepdims=True)
    weights_BKGTS = weights_BKGTS / jnp.where(total_BKGT > 0, total_BKGT, 1.0)
    out_BTKGH = jnp.einsum("bkgts,bskh->btkgh", weights_BKGTS, v_BSKH, precision=exact)
    return out_BTKGH.reshape(B, T, N, H).astype(q_BTNH.dtype)
