"""AnchorAttention for NVIDIA GPUs: Pallas Triton kernels over live tiles."""

import jax

from anchorjax.attention import gradient
from anchorjax.attention.pallas_gpu import backward, forward
from anchorjax.attention.pallas_gpu.arrays import Arrays
from anchorjax.attention.pallas_gpu.tile import interpret_context
from anchorjax.attention.plan import Plan
from anchorjax.masks import Mask

def interpreted():
    return interpret_context(True)

def apply(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, plan: Plan
) -> tuple[jax.Array, jax.Array]:
    return gradient.attend(_forward, _backward, q_BTNH, k_BSKH, v_BSKH, mask, plan)


def _forward(q_BTNH, k_BSKH, v_BSKH, mask, plan):
    return forward.call(Arrays(q_BTNH, k_BSKH, v_BSKH, mask, plan))


def _backward(q_BTNH, k_BSKH, v_BSKH, mask, plan, dout_BTNH, lse_BTN, delta_BTN):
    return backward.call(Arrays(q_BTNH, k_BSKH, v_BSKH, mask, plan), dout_BTNH, lse_BTN, delta_BTN)
