"""The definition of correct: dense attention with a materialised mask and softmax in fp32."""

import jax
import jax.numpy as jnp

from anchorjax.attention.anchors import NOTHING, bend
from anchorjax.attention.plan import Plan
from anchorjax.masks import Mask


def apply(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, plan: Plan | None
) -> tuple[jax.Array, jax.Array]:
    """softmax(q k' / sqrt(H)) v over the allowed keys, and its log-sum-exp; the contract is `attention_with_lse`'s.

    O(T S) memory. Inputs are used in fp32 at the highest matmul precision. `plan` is ignored: nothing is
    skipped here.
    """
    del plan
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.astype(jnp.float32).reshape(B, T, K, N // K, H)
    k_BSKH, v_BSKH = k_BSKH.astype(jnp.float32), v_BSKH.astype(jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    logits_BKGTS = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, precision=exact) * H**-0.5
    logits_BKGTS, _ = bend(logits_BKGTS, mask.soft_cap)
    allowed_BTS = mask.materialize()[:, None, None]
    logits_BKGTS = jnp.where(allowed_BTS, logits_BKGTS, -jnp.inf)
    # A finite maximum even for rows that see nothing, so that no NaN arises in values or gradients.
    max_BKGT1 = jax.lax.stop_gradient(jnp.maximum(jnp.max(logits_BKGTS, -1, keepdims=True), NOTHING))
    weights_BKGTS = jnp.where(allowed_BTS, jnp.exp(logits_BKGTS - max_BKGT1), 0.0)
    total_BKGT1 = jnp.sum(weights_BKGTS, -1, keepdims=True)
    seen = total_BKGT1 > 0
    total_BKGT1 = jnp.where(seen, total_BKGT1, 1.0)
    out_BTKGH = jnp.einsum("bkgts,bskh->btkgh", weights_BKGTS / total_BKGT1, v_BSKH, precision=exact)
    lse_BKGT = jnp.where(seen, max_BKGT1 + jnp.log(total_BKGT1), NOTHING)[..., 0]
    lse_BTN = jnp.moveaxis(lse_BKGT, 3, 1).reshape(B, T, N)
    return out_BTKGH.reshape(B, T, N, H).astype(q_BTNH.dtype), lse_BTN
