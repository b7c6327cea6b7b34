"""AnchorAttention for NVIDIA GPUs: Pallas Triton kernels, driven by the plan's lists of live tiles.

One program per block of queries and head (forward; dq) or block of keys and key head (dk and dv together, over
the query heads that share it: keys are never repeated, and nothing is added by two programs, so gradients are
the same in every run). Each walks its tile's stretch of the list, so a dead tile costs nothing; tiles that are
wholly visible skip the mask. The forward pass's softmax begins with the anchor keys, padded to 16 or more.

q, k, v are read where they lie: [B, T, N, H], head widths padded to a power of two by masked loads, rows that no
tile divides by masked rows. Pallas computes addresses in 64 bits for arrays above 4 GB and in 32 bits below,
where they suffice: no row is too long for them.

The delta of the backward pass and the anchors' gradients are in `attention.gradient`. A Hopper kernel (Mosaic
GPU, warp-specialised wgmma) would be a package beside this one with the same `apply`.

Letters: X query tokens and Y key tokens of all rows, each row padded to tiles; t, s tokens of one block of
queries and of keys. Sources: FlashAttention-2 (arXiv 2307.08691, Algorithms 1 and 2), exponentials to base 2.

This file describes the implementation and imports no Pallas: the kernels are imported where they are called.
"""

import contextlib

import jax

from anchorjax.attention import gradient
from anchorjax.attention.plan import Plan, refused_tile

BACKEND = "gpu"
SMALLEST = 16  # side of a Triton matmul: of tiles and blocks
WIDEST = 256  # head, in numbers: wider ones have no blocks in pallas_gpu/blocks.py
# The finest tile that all blocks divide (pallas_gpu/blocks.py), as a document's edge then costs least. The plan's
# lists grow with the square of the number of tiles, so longer rows take larger ones: both lists of a row are at most
# 8 MB up to 512K tokens, and 32 MB at 1M.
_TILES = (128, 256, 512)
_TILES_PER_ROW = 1024  # at most, while there is a larger tile

# Part of jit's cache key, so that a function traced outside is traced anew inside.
interpret_context = jax.make_user_context(False)


def default_tiles(device_kind: str, seq_len: int = 0) -> tuple[int, int]:
    """(q_tile, kv_tile) in tokens, the same for all GPUs: 128 for up to 128K keys a row, 256 up to 256K, then 512."""
    tile = next((size for size in _TILES if seq_len <= size * _TILES_PER_ROW), _TILES[-1])
    return tile, tile


def supports(q_tile: int, kv_tile: int, head_dim: int = 1, dtype: str = "float32") -> tuple[str, str] | None:
    """None, or (the argument that is not supported, what is allowed)."""
    takes = lambda tile: tile >= SMALLEST and tile & (tile - 1) == 0  # noqa: E731
    refused = refused_tile(q_tile, kv_tile, takes, f"powers of two from {SMALLEST} on")
    return refused or (("head_dim", f"heads of up to {WIDEST}") if head_dim > WIDEST else None)


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of one device's arrays; the contract is that of `attention.attention_with_lse`.

    Off the GPU it runs inside `interpreted()` only.

    Raises:
      NotImplementedError: heads wider than 256.
    """
    return gradient.attend(forward_pass, backward_pass, q_BTNH, k_BSKH, v_BSKH, plan)


def interpreted() -> contextlib.AbstractContextManager:
    """Inside it kernels are run by XLA, statement by statement, on any backend: for tests, never chosen by itself.

    What counts is where a function is traced, as with `pltpu.force_tpu_interpret_mode`; the mode is part of jit's
    cache key, so a function jitted outside is traced again inside. A VJP taken inside must be called inside.
    """
    return interpret_context(True)


def forward_pass(q_BTNH, k_BSKH, v_BSKH, plan):
    if q_BTNH.shape[-1] > WIDEST:
        raise NotImplementedError(f"attention pallas_gpu: q has shape {q_BTNH.shape}; allowed: heads of 1 to {WIDEST}")
    from anchorjax.attention.pallas_gpu import forward
    from anchorjax.attention.pallas_gpu.arrays import Arrays

    return forward.call(Arrays(q_BTNH, k_BSKH, v_BSKH, plan))


def backward_pass(q_BTNH, k_BSKH, v_BSKH, plan, dout_BTNH, lse_BTN, delta_BTN):
    from anchorjax.attention.pallas_gpu import backward
    from anchorjax.attention.pallas_gpu.arrays import Arrays

    return backward.call(Arrays(q_BTNH, k_BSKH, v_BSKH, plan), dout_BTNH, lse_BTN, delta_BTN)
