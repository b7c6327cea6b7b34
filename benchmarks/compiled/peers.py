"""Other people's TPU attention, as fast as it can be had: what ours is held against.

    jax_splash       jax.experimental's splash attention: a causal mask and segment ids, compared in every tile of the
                     causal triangle.
    tokamax_splash   tokamax's splash attention with a causal mask and segment ids. From 0.0.16 on (Python 3.12, jax
                     0.11.1) it lists at run time the tiles whose ranges of ids meet, in every layer and pass, and under
                     `vmap` one list for all rows. It compares ids in every tile. Its dq has three slots in q's dtype.
    tokamax_anchor   the same kernels with a mask of our own making: the anchor's rule, tiles listed at run time. One
                     anchor and no pads here.

The first two cannot see an anchor that documents share: the paper's way around that is a copy in front of each, which
is a document's first token to them. Heads come in front: q_NTH, k_KSH, v_KSH of one row; q comes scaled.
"""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as tokamax_kernel
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as tokamax_mask
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
    """Causal attention within segments.

    Raises:
      NotImplementedError: a tokamax without pruning.
    """
    kernel = _segmented(q_NTH.shape[1], _config(q_tile, kv_tile, interpret))
    return kernel(q_NTH, k_KSH, v_KSH, tokamax_kernel.SegmentIds(segment_ids_T, segment_ids_T))


def tokamax_pruned(segment_ids_T, q_tile: int, kv_tile: int, which: str):
    """What `tokamax_splash` makes of a row's ids in each pass of each layer: (list of tiles, two lists of bounds)."""
    T = segment_ids_T.shape[0]
    kernel = _segmented(T, _config(q_tile, kv_tile))
    causal = kernel.fwd_mask_info if which == "forward" else kernel.dkv_mask_info
    return tokamax_kernel._refine_mask_info_with_segments(
        causal,
        tokamax_kernel.SegmentIds(segment_ids_T, segment_ids_T),
        q_blocks=T // q_tile,
        kv_blocks=T // kv_tile,
        bq=q_tile,
        bkv=kv_tile,
        is_dkv=which == "backward",
    )


def require_pruning() -> None:
    """Raises NotImplementedError where tokamax is too old to list tiles by segment ids."""
    if not hasattr(tokamax_kernel, "_refine_mask_info_with_segments"):
        version = importlib.metadata.version("tokamax")
        raise NotImplementedError(f"tokamax {version} skips no tiles by segment ids: this needs 0.0.17 (Python 3.12)")


@functools.cache  # the causal tiles are listed on the host: 10 s for 64K tokens and tiles of 512
def _segmented(T: int, config):
    require_pruning()
    with jax.ensure_compile_time_eval():
        return tokamax_kernel.make_splash_mha(tokamax_mask.CausalMask((T, T)), config=config, q_seq_shards=1)


def _config(q_tile: int, kv_tile: int, interpret=False):
    return tokamax_kernel.SplashConfig(
        block_q=q_tile,
        block_kv=kv_tile,
        block_q_dkv=q_tile,
        block_kv_dkv=kv_tile,
        dq_reduction_steps=3,
        interpret=interpret,
    )


def tokamax_anchor(q_NTH, k_KSH, v_KSH, segment_ids_T, q_tile: int, kv_tile: int, interpret=False):
    """Attention to the own document, in one piece, and to token 0."""
    kernel = tokamax_kernel.SplashAttentionKernel(
        _mask_info(segment_ids_T, q_tile, kv_tile, by_key=False),
        _mask_info(segment_ids_T, q_tile, kv_tile, by_key=True),
        config=_config(q_tile, kv_tile, interpret),
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


# All call their kernels so, in the compiler's dump too.
NAMES = {"forward": "splash_mha_fwd", "backward": "splash_mha_dkv"}


def gradient(attention, q_tile: int, kv_tile: int):
    """A program of (q, k, v, segment ids) that runs both passes."""
    attend = functools.partial(attention, q_tile=q_tile, kv_tile=kv_tile)

    def total(qkv, segment_ids_T):
        return jnp.sum(attend(*qkv, segment_ids_T).astype(jnp.float32))

    return lambda q, k, v, segment_ids_T: jax.grad(total)((q, k, v), segment_ids_T)
