"""The anchor keys' share of attention, in closed form: what fast paths start from and add at the end.

Forward: the state of the online softmax after the anchor keys alone. Backward: with p = exp(logit - lse) for
the whole softmax's log-sum-exp, the anchors' gradients need no tile. Both are O(T A) and plain XLA. Anchor
keys are found by index, so that keys may come in any order, or without them.
"""

import dataclasses

import jax
import jax.numpy as jnp

from anchorjax import precision
from anchorjax.masks import Mask, sees_anchor
from anchorjax.types import PAD_SEGMENT

NOTHING = -1e30  # log-sum-exp of "no key seen": finite, so that the difference of two is not NaN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Anchors:
    """The anchor keys of each row, and the queries that see them.

    Attributes:
      slots_BA: int32 place of each anchor among the keys.
      k_BAKH, v_BAKH: their keys and values, fp32.
      visible_BTA: bool.
    """

    slots_BA: jax.Array
    k_BAKH: jax.Array
    v_BAKH: jax.Array
    visible_BTA: jax.Array


def locate(mask: Mask) -> tuple[jax.Array, jax.Array]:
    """int32 place of each anchor among the keys [B, A], and whether it exists and is not padding, [B, A]."""
    is_anchor_BAS = mask.kv_index_BS[:, None] == jnp.arange(mask.num_anchors)[:, None]
    is_anchor_BAS &= mask.kv_segment_ids_BS[:, None] != PAD_SEGMENT
    return jnp.argmax(is_anchor_BAS, -1).astype(jnp.int32), jnp.any(is_anchor_BAS, -1)


def find(k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> Anchors:
    slots_BA, exists_BA = locate(mask)
    rows_B1 = jnp.arange(k_BSKH.shape[0])[:, None]
    k_BAKH, v_BAKH = (x[rows_B1, slots_BA].astype(jnp.float32) for x in (k_BSKH, v_BSKH))
    return Anchors(slots_BA, k_BAKH, v_BAKH, visible(mask) & exists_BA[:, None])


def visible(mask: Mask) -> jax.Array:
    """The queries that see each anchor, bool [B, T, A], if the row has it."""
    return sees_anchor(mask.q_index_BT[..., None], mask.q_segment_ids_BT[..., None], jnp.arange(mask.num_anchors))


def state(q_BTNH: jax.Array, anchors: Anchors, mask: Mask) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The online softmax after the anchors: fp32 (m [B,T,N], l [B,T,N], acc [B,T,N,H]); (NOTHING, 0, 0) if none."""
    s_BTKGA, _ = _logits(q_BTNH, anchors, mask)
    m_BTKG = jnp.max(s_BTKGA, -1, initial=NOTHING)
    p_BTKGA = jnp.exp(s_BTKGA - m_BTKG[..., None])
    acc_BTKGH = _weighted_sum(p_BTKGA, anchors.v_BAKH)
    B, T, N, H = q_BTNH.shape
    return m_BTKG.reshape(B, T, N), jnp.sum(p_BTKGA, -1).reshape(B, T, N), acc_BTKGH.reshape(B, T, N, H)


def gradients(
    q_BTNH: jax.Array, dout_BTNH: jax.Array, lse_BTN: jax.Array, delta_BTN: jax.Array, anchors: Anchors, mask: Mask
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The anchors' share of dq [B,T,N,H], and their own dk, dv [B,A,K,H], fp32.

    Args:
      delta_BTN: sum(dout * out) - dlse, as in FlashAttention-2 (arXiv 2307.08691, Algorithm 2).
    """
    B, T, N, H = q_BTNH.shape
    heads = anchors.k_BAKH.shape[2], N // anchors.k_BAKH.shape[2]
    q_BTKGH, do_BTKGH = (x.astype(jnp.float32).reshape(B, T, *heads, H) for x in (q_BTNH, dout_BTNH))
    lse_BTKG1, delta_BTKG1 = (x.reshape(B, T, *heads, 1) for x in (lse_BTN, delta_BTN))
    s_BTKGA, slope_BTKGA = _logits(q_BTNH, anchors, mask)
    p_BTKGA = jnp.exp(s_BTKGA - lse_BTKG1)
    dp_BTKGA = _dot_products(do_BTKGH, anchors.v_BAKH)
    ds_BTKGA = p_BTKGA * (dp_BTKGA - delta_BTKG1) * slope_BTKGA
    dq_BTKGH = _weighted_sum(ds_BTKGA, anchors.k_BAKH)
    dk_BAKH, dv_BAKH = _sum_over_queries(ds_BTKGA, q_BTKGH), _sum_over_queries(p_BTKGA, do_BTKGH)
    return dq_BTKGH.reshape(B, T, N, H), dk_BAKH, dv_BAKH


def add_at(x_BSKH: jax.Array, share_BAKH: jax.Array, anchors: Anchors) -> jax.Array:
    """Adds each anchor's gradient at its place among the keys."""
    rows_B1 = jnp.arange(x_BSKH.shape[0])[:, None]
    return x_BSKH.at[rows_B1, anchors.slots_BA].add(share_BAKH)


def softcap(s: jax.Array, soft_cap: float | None) -> tuple[jax.Array, jax.Array | float]:
    """The capped logits and their derivative by the uncapped ones (Gemma 2, arXiv 2408.00118, Section 2)."""
    if soft_cap is None:
        return s, 1.0
    ratio = jnp.tanh(s / soft_cap)
    return soft_cap * ratio, 1.0 - ratio * ratio


def _logits(q_BTNH: jax.Array, anchors: Anchors, mask: Mask) -> tuple[jax.Array, jax.Array]:
    """Logits [B,T,K,G,A], -inf where not visible, and their derivative by the dot products."""
    B, T, N, H = q_BTNH.shape
    K, scale = anchors.k_BAKH.shape[2], H**-0.5
    q_BTKGH = q_BTNH.astype(jnp.float32).reshape(B, T, K, N // K, H)
    s_BTKGA, slope = softcap(_dot_products(q_BTKGH, anchors.k_BAKH) * scale, mask.soft_cap)
    return jnp.where(anchors.visible_BTA[:, :, None, None], s_BTKGA, -jnp.inf), slope * scale


def rowwise_dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """fp32 sum of x * y over the last axis, the others broadcast.

    A product over batch axes only: on a CPU XLA's reduction over so short an axis takes 20 times as long, and a
    matmul with one or two anchors on a side first makes transposed copies of q.
    """
    x, y = jnp.broadcast_arrays(x.astype(jnp.float32), y.astype(jnp.float32))
    return precision.einsum("...h,...h->...", x, y)


def _dot_products(x_BTKGH: jax.Array, anchors_BAKH: jax.Array) -> jax.Array:
    """[B, T, K, G, A]."""
    return rowwise_dot(x_BTKGH[..., None, :], anchors_BAKH.swapaxes(1, 2)[:, None, :, None])


def _weighted_sum(weights_BTKGA: jax.Array, anchors_BAKH: jax.Array) -> jax.Array:
    """[B, T, K, G, H]."""
    return jnp.sum(weights_BTKGA[..., None] * anchors_BAKH.swapaxes(1, 2)[:, None, :, None], -2)


def _sum_over_queries(weights_BTKGA: jax.Array, x_BTKGH: jax.Array) -> jax.Array:
    """[B, A, K, H]."""
    return jnp.sum(weights_BTKGA[..., None] * x_BTKGH[..., None, :], (1, 3)).swapaxes(1, 2)
