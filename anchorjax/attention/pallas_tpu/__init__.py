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

This file describes the implementation and imports no Pallas: the kernels are imported where they are called.
"""

import jax

from anchorjax.attention import gradient
from anchorjax.attention.plan import Plan, refused_tile

BACKEND = "tpu"
LANES = 128  # of a vector register; its 8 sublanes are the other side

KINDS = {  # what JAX and what people call a generation
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
# By generation: the least modelled cycles, forward and backward, on packed rows of 64K tokens
# (benchmarks/compiled/tpu_modelled.py), from compiled schedules (benchmarks/compiled/tpu_schedule.py). Cycles of a
# row in millions, on real documents of 2619 tokens in the mean / on drawn ones of 1060:
#          512 x 512     1024 x 512    512 x 1024    1024 x 1024
#   v5e    4.81 / 3.24   4.90 / 3.47   4.99 / 3.55   5.05 / 3.70   at the matrix units' bound at every tile
#   v5p    5.29 / 3.56   5.16 / 3.66   5.25 / 3.72   5.18 / 3.80   as v5e, with more work between steps
#   v6e    3.57 / 2.43   3.21 / 2.31   3.32 / 2.39   3.08 / 2.30   far from the bounds at 512 x 512, where filling and
#                                                                  draining the units takes half of a tile's bundles
# v4 and tpu7x are not modelled: they take what the generation whose matrix units they share takes.
_TILES = {
    "v4": (512, 512),
    "v5e": (512, 512),
    "v5p": (512, 512),
    "v6e": (1024, 1024),
    "tpu7x": (1024, 1024),
}


def default_tiles(device_kind: str, seq_len: int = 0) -> tuple[int, int]:
    """(q_tile, kv_tile) in tokens, by generation alone. An unknown TPU takes v5e's tiles.

    Args:
      device_kind: `jax.Device.device_kind`, or a name from `targets`.
    """
    return _TILES.get(KINDS.get(device_kind, device_kind), _TILES["v5e"])


def supports(q_tile: int, kv_tile: int, head_dim: int = 1, dtype: str = "float32") -> tuple[str, str] | None:
    """None, or (the argument that is not supported, what is allowed)."""
    return refused_tile(q_tile, kv_tile, lambda tile: tile >= LANES and tile % LANES == 0, f"multiples of {LANES}")


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of one device's arrays; the contract is that of `attention.attention_with_lse`.

    Off the TPU it runs inside `pltpu.force_tpu_interpret_mode()` only, which simulates memories and copies.
    """
    return gradient.attend(forward_pass, backward_pass, q_BTNH, k_BSKH, v_BSKH, plan)


def forward_pass(q_BTNH, k_BSKH, v_BSKH, plan):
    from anchorjax.attention.pallas_tpu import forward
    from anchorjax.attention.pallas_tpu.arrays import Arrays

    arrays = Arrays(q_BTNH, k_BSKH, v_BSKH, plan)
    out_NXH, lse_NX = forward.call(arrays)
    return arrays.join(out_NXH), arrays.join(lse_NX[..., None])[..., 0]


def backward_pass(q_BTNH, k_BSKH, v_BSKH, plan, dout_BTNH, lse_BTN, delta_BTN):
    from anchorjax.attention.pallas_tpu import backward
    from anchorjax.attention.pallas_tpu.arrays import Arrays

    arrays = Arrays(q_BTNH, k_BSKH, v_BSKH, plan)
    dq_NXH, dk_KYH, dv_KYH = backward.call(arrays, dout_BTNH, lse_BTN, delta_BTN)
    return arrays.join(dq_NXH), arrays.join_keys(dk_KYH), arrays.join_keys(dv_KYH)
