"""AnchorAttention for TPUs: a Pallas Mosaic kernel for each pass, driven by the plan's list of live tiles.

The second grid dimension of both kernels is the number of listed tiles, known at run time: a dead tile costs
nothing. Tiles that are wholly visible take a body without a mask.

Forward, by query tile: an online softmax that starts from the anchor keys. Backward, by key tile, one pass,
five matmuls a tile: dk and dv of a key tile stay in VMEM through its stretch of the list; dq lies in HBM in
fp32 and is summed in place by hand-made copies, read while the tile is computed and written behind it. No
copies of dq per key tile exist; extra memory is O(T).

The list is read from scalar memory (1 MB), so long ones come in chunks, one kernel call each.

Letters: X = R * t query tokens and Y = M * s key tokens of all rows, padded to tiles; t, s one tile's.
Sources: FlashAttention-2 (arXiv 2307.08691, Algorithms 1 and 2), exponentials to base 2.
"""

import jax

from anchorjax.attention import gradient
from anchorjax.attention.pallas_tpu import backward, forward
from anchorjax.attention.pallas_tpu.arrays import Arrays
from anchorjax.attention.plan import Plan


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of one device's arrays; the contract is that of `attention.attention_with_lse`.

    Off the TPU it runs inside `pltpu.force_tpu_interpret_mode()` only, which simulates memories and copies.
    """
    return gradient.attend(_forward, _backward, q_BTNH, k_BSKH, v_BSKH, plan)


def _forward(q_BTNH, k_BSKH, v_BSKH, plan):
    arrays = Arrays(q_BTNH, k_BSKH, v_BSKH, plan)
    out_NXH, lse_NX = forward.call(arrays)
    return arrays.join(out_NXH), arrays.join(lse_NX[..., None])[..., 0]


def _backward(q_BTNH, k_BSKH, v_BSKH, plan, dout_BTNH, lse_BTN, delta_BTN):
    arrays = Arrays(q_BTNH, k_BSKH, v_BSKH, plan)
    dq_NXH, dk_KYH, dv_KYH = backward.call(arrays, dout_BTNH, lse_BTN, delta_BTN)
    return arrays.join(dq_NXH), arrays.join_keys(dk_KYH), arrays.join_keys(dv_KYH)
