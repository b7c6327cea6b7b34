"""Other people's TPU attention, as fast as it can be had: what ours is held against.

    jax_splash       jax.experimental's splash attention: a causal mask and segment ids, compared in every tile of the
                     causal triangle. This is what trainers use for packed rows; it cannot see an anchor.
    tokamax_splash   tokamax's splash attention, given a mask of our own making: the anchor's rule, tiles listed at run
                     time. Its dq is summed in bf16, and it has one anchor and no pads here.

Heads come in front: q_NTH, k_KSH, v_KSH of one row. Both leave the scaling of q to the caller.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as tokamax_kernel
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask_info as tokamax_mask_info

_START_BITS = 16  # of a document's start, packed below a query's index: rows of up to 64K tokens


def jax_splash(q_NTH, k_KSH, v_KSH, segment_ids_T, q_tile: int, kv_tile: int):
    """Causal attention within segments; the fused backward kernel."""
    N, T, _ = q_NTH.shape
    sizes = splash_attention_kernel.BlockSizes(
        block_q=q_tile,
        block_kv=kv_tile,
        block_kv_compute=kv_tile,
        block_q_dkv=q_tile,
        block_kv_dkv=kv_tile,
        block_kv_dkv_compute=kv_tile,
        use_fused_bwd_kernel=True,
    )
    causal = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((T, T))] * N)
    kernel = splash_attention_kernel.make_splash_mha(causal, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    return kernel(q_NTH, k_KSH, v_KSH, splash_attention_kernel.SegmentIds(segment_ids_T, segment_ids_T))


def tokamax_splash(q_NTH, k_KSH, v_KSH, segment_ids_T, q_tile: int, kv_tile: int, interpret=False):
    """Attention to the own document, in one piece, and to token 0."""
    config = tokamax_kernel.SplashConfig(
        block_q=q_tile,
        block_kv=kv_tile,
        block_q_dkv=q_tile,
        block_kv_dkv=kv_tile,
        dq_reduction_steps=3,
        interpret=interpret,
    )
    kernel = tokamax_kernel.SplashAttentionKernel(
        _mask_info(segment_ids_T, q_tile, kv_tile, by_key=False),
        _mask_info(segment_ids_T, q_tile, kv_tile, by_key=True),
        config=config,
        is_mqa=False,
        save_residuals=False,
        mask_value=-2.4e38,
        mask_function=_allowed,
        fwd_mask_sparsity=1.0,
        dkv_mask_sparsity=1.0,
    )
    return kernel(q_NTH, k_KSH, v_KSH)


def _allowed(q_packed, kv_index):
    """The rule, from what fits into the one integer that tokamax hands through for each query."""
    index, start = q_packed >> _START_BITS, q_packed & (2**_START_BITS - 1)
    return (kv_index <= index) & ((kv_index >= start) | (kv_index == 0))


def _mask_info(segment_ids_T, q_tile, kv_tile, by_key):
    """Tokamax's list of tiles: 1 is a tile with a mask, 2 one without."""
    T = segment_ids_T.shape[0]
    index_T = jnp.arange(T, dtype=jnp.int32)
    begins_T = jnp.pad(segment_ids_T[1:] != segment_ids_T[:-1], (1, 0), constant_values=True)
    start_T = jax.lax.cummax(jnp.where(begins_T, index_T, 0))
    start_It = start_T.reshape(-1, q_tile)
    q_first_I1 = jnp.arange(0, T, q_tile)[:, None]
    kv_first_J = jnp.arange(0, T, kv_tile)
    kv_last_J = kv_first_J + kv_tile - 1
    reached_IJ = (kv_last_J >= jnp.min(start_It, 1, keepdims=True)) | (kv_first_J == 0)
    live_IJ = (kv_first_J <= q_first_I1 + q_tile - 1) & reached_IJ
    whole_IJ = (kv_last_J <= q_first_I1) & (kv_first_J >= jnp.max(start_It, 1, keepdims=True))
    kind_IJ = jnp.where(live_IJ, jnp.where(whole_IJ, 2, 1), 0).astype(jnp.int32)
    kind = kind_IJ.T if by_key else kind_IJ
    rows, columns = jnp.nonzero(kind, size=kind.size, fill_value=-1)
    count = jnp.sum(live_IJ, dtype=jnp.int32)
    return tokamax_mask_info.MaskInfo(
        mask_next=None,
        active_rows=rows.astype(jnp.int32),
        active_cols=columns.astype(jnp.int32),
        block_mask=jnp.where(jnp.arange(kind.size) < count, kind[rows, columns], 0),
        num_active_blocks=count[None],
        partial_mask_blocks=None,
        q_sequence=index_T << _START_BITS | start_T,
    )


# Both call their kernels so, in the compiler's dump too.
NAMES = {"forward": "splash_mha_fwd", "backward": "splash_mha_dkv"}


def gradient(attention, q_tile: int, kv_tile: int):
    """A program of (q, k, v, segment ids) that runs both passes."""
    attend = functools.partial(attention, q_tile=q_tile, kv_tile=kv_tile)

    def total(qkv, segment_ids_T):
        return jnp.sum(attend(*qkv, segment_ids_T).astype(jnp.float32))

    return lambda q, k, v, segment_ids_T: jax.grad(total)((q, k, v), segment_ids_T)
