"""The gradient that all fast paths share: they bring two passes over tiles, this joins them to one function.

What is the same for each of them is here: what is saved and under which name, delta, the anchors' share, that
padding is read as zeros, and in which dtype results leave. A pass sees one device's arrays:

    forward(q, k, v, plan) -> (out_BTNH in q's dtype, lse_BTN)
    backward(q, k, v, plan, dout_BTNH, lse_BTN, delta_BTN) -> fp32 (dq_BTNH, dk_BSKH, dv_BSKH)

The forward pass starts its softmax from the anchor keys (`anchors.state`); the backward pass leaves them out.
Source: FlashAttention-2 (arXiv 2307.08691, Algorithms 1 and 2).
"""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name

from anchorjax.attention import anchors as anchors_lib
from anchorjax.masks import Mask, padding_as_zeros

NAME = "attention"  # of the saved output and log-sum-exp, for remat policies


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(forward, backward, q_BTNH, k_BSKH, v_BSKH, plan) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of `forward`, differentiable in q, k and v through both."""
    return forward(*real(q_BTNH, k_BSKH, v_BSKH, plan.mask), plan)


def real(q_BTNH, k_BSKH, v_BSKH, mask: Mask) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The arrays with zeros at padding, for use inside of a custom gradient: its results are zeros there already."""
    keys = (padding_as_zeros(x_BSKH, mask.kv_segment_ids_BS) for x_BSKH in (k_BSKH, v_BSKH))
    return padding_as_zeros(q_BTNH, mask.q_segment_ids_BT), *keys


def _forward(forward, backward, q_BTNH, k_BSKH, v_BSKH, plan):
    q_BTNH, k_BSKH, v_BSKH = real(q_BTNH, k_BSKH, v_BSKH, plan.mask)
    out_BTNH, lse_BTN = forward(q_BTNH, k_BSKH, v_BSKH, plan)
    out_BTNH, lse_BTN = checkpoint_name(out_BTNH, NAME), checkpoint_name(lse_BTN, NAME)
    return (out_BTNH, lse_BTN), (q_BTNH, k_BSKH, v_BSKH, plan, out_BTNH, lse_BTN)


def _backward(forward, backward, residuals, cotangents):
    q_BTNH, k_BSKH, v_BSKH, plan, out_BTNH, lse_BTN = residuals
    mask = plan.mask
    dout_BTNH, dlse_BTN = (padding_as_zeros(x_BT, mask.q_segment_ids_BT) for x_BT in cotangents)
    # A cotangent of the log-sum-exp enters like one of the output along it: ds = p (dp - delta).
    delta_BTN = anchors_lib.rowwise_dot(dout_BTNH, out_BTNH) - dlse_BTN
    dq_BTNH, dk_BSKH, dv_BSKH = backward(q_BTNH, k_BSKH, v_BSKH, plan, dout_BTNH, lse_BTN, delta_BTN)
    if mask.num_anchors:
        anchors = anchors_lib.find(k_BSKH, v_BSKH, mask)
        dq, dk_BAKH, dv_BAKH = anchors_lib.gradients(q_BTNH, dout_BTNH, lse_BTN, delta_BTN, anchors, mask)
        dq_BTNH += dq
        dk_BSKH, dv_BSKH = anchors_lib.add_at(dk_BSKH, dk_BAKH, anchors), anchors_lib.add_at(dv_BSKH, dv_BAKH, anchors)
    dtype = q_BTNH.dtype
    return dq_BTNH.astype(dtype), dk_BSKH.astype(dtype), dv_BSKH.astype(dtype), None


attend.defvjp(_forward, _backward)
