"""The definition of correct: dense attention with a materialised mask and softmax in fp32."""

import jax
import jax.numpy as jnp

from anchorjax import precision
from anchorjax.attention.anchors import NOTHING, softcap
from anchorjax.attention.plan import SMALLEST_TILE, Plan, refused_tile
from anchorjax.masks import Mask, padding_as_zeros

BACKEND = None  # any


def default_tiles(device_kind: str, seq_len: int = 0) -> tuple[int, int]:
    """(q_tile, kv_tile) in tokens, of the plan; nothing is computed by tiles here."""
    return 256, 256


def supports(q_tile: int, kv_tile: int, head_dim: int = 1, dtype: str = "float32") -> tuple[str, str] | None:
    """None, or (the argument that is not supported, what is allowed)."""
    return refused_tile(q_tile, kv_tile, lambda tile: tile >= SMALLEST_TILE, f"{SMALLEST_TILE} or more")


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """softmax(q k' / sqrt(H)) v over the allowed keys, and its log-sum-exp; the contract is `attention_with_lse`'s.

    O(T S) memory. Inputs are used in fp32 with fp32 products. Only the plan's mask is read: no tile is skipped here.
    """
    mask = plan.mask
    k_BSKH, v_BSKH = (padding_as_zeros(x_BSKH, mask.kv_segment_ids_BS) for x_BSKH in (k_BSKH, v_BSKH))
    weights_BKGTS, lse_BKGT = softmax(logits(padding_as_zeros(q_BTNH, mask.q_segment_ids_BT), k_BSKH, mask))
    # Of padding this is zeros already: what is stopped here is its cotangent.
    out_BTNH = padding_as_zeros(weighted(weights_BKGTS, v_BSKH), mask.q_segment_ids_BT)
    return out_BTNH.astype(q_BTNH.dtype), jnp.moveaxis(lse_BKGT, 3, 1).reshape(q_BTNH.shape[:3])


forward_pass = apply


def backward_pass(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    plan: Plan,
    dout_BTNH: jax.Array,
    lse_BTN: jax.Array,
    delta_BTN: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """fp32 (dq, dk, dv) of keys that are a part of those in `lse_BTN`, for a mask without anchors.

    `delta_BTN` is sum(dout * out) - dlse (FlashAttention-2, arXiv 2307.08691, Algorithm 2).
    """
    K = k_BSKH.shape[2]
    by_head = lambda x_BTN: jnp.moveaxis(x_BTN.reshape(*x_BTN.shape[:2], K, -1), 1, 3)  # noqa: E731 - [B, K, G, T]
    logits_BKGTS, vjp = jax.vjp(
        lambda q, k: logits(q, k, plan.mask), *(x.astype(jnp.float32) for x in (q_BTNH, k_BSKH))
    )
    weights_BKGTS = jnp.exp(logits_BKGTS - by_head(lse_BTN)[..., None])
    dweights_BKGTS, dv_BSKH = _transposed(weights_BKGTS, v_BSKH, dout_BTNH)
    dq_BTNH, dk_BSKH = vjp(weights_BKGTS * (dweights_BKGTS - by_head(delta_BTN)[..., None]))
    return dq_BTNH, dk_BSKH, dv_BSKH


def _transposed(weights_BKGTS, v_BSKH, dout_BTNH):
    """The cotangents of weights and values for one of `weighted`."""
    _, vjp = jax.vjp(weighted, weights_BKGTS, v_BSKH.astype(jnp.float32))
    return vjp(dout_BTNH.astype(jnp.float32))


def logits(q_BTNH: jax.Array, k_BSKH: jax.Array, mask: Mask) -> jax.Array:
    """fp32 q k' / sqrt(H) [B, K, G, T, S], capped as the mask says; -inf where it forbids."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.astype(jnp.float32).reshape(B, T, K, N // K, H)
    logits_BKGTS = precision.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH.astype(jnp.float32)) * H**-0.5
    logits_BKGTS, _ = softcap(logits_BKGTS, mask.soft_cap)
    return jnp.where(mask.materialize()[:, None, None], logits_BKGTS, -jnp.inf)


def softmax(logits_BKGTS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights over the keys, and the log-sum-exp [B, K, G, T]; zeros and NOTHING where no key is allowed."""
    # A finite maximum even for rows that see nothing, so that no NaN arises in values or gradients.
    max_BKGT1 = jax.lax.stop_gradient(jnp.maximum(jnp.max(logits_BKGTS, -1, keepdims=True), NOTHING))
    weights_BKGTS = jnp.where(logits_BKGTS > -jnp.inf, jnp.exp(logits_BKGTS - max_BKGT1), 0.0)
    total_BKGT1 = jnp.sum(weights_BKGTS, -1, keepdims=True)
    seen = total_BKGT1 > 0
    total_BKGT1 = jnp.where(seen, total_BKGT1, 1.0)
    return weights_BKGTS / total_BKGT1, jnp.where(seen, max_BKGT1 + jnp.log(total_BKGT1), NOTHING)[..., 0]


def weighted(weights_BKGTS: jax.Array, v_BSKH: jax.Array) -> jax.Array:
    """fp32 sums of values [B, T, N, H]."""
    out_BTKGH = precision.einsum("bkgts,bskh->btkgh", weights_BKGTS, v_BSKH.astype(jnp.float32))
    B, T, K, G, H = out_BTKGH.shape
    return out_BTKGH.reshape(B, T, K * G, H)
