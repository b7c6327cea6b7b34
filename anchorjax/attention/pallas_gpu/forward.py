"""The forward kernel: an online softmax per block of queries, started from the anchor keys."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from anchorjax.attention.anchors import NOTHING
from anchorjax.attention.kernels import LOG2E, MASKED, NN, NT, div, output, rem
from anchorjax.attention.pallas_gpu import blocks as blocks_lib
from anchorjax.attention.pallas_gpu.arrays import Arrays
from anchorjax.attention.pallas_gpu.blocks import Blocks
from anchorjax.attention.pallas_gpu.tile import Static, run, whole


def _kernel(entries, starts, lengths, *refs, static: Static, blocks: Blocks):
    """One block of queries of one head. The anchors' three refs come only if there are any."""
    lines, anchor_refs = refs[:4], refs[4:-5]
    q_ref, k_ref, v_ref, out_ref, lse_ref = refs[-5:]
    block, row = pl.program_id(1), pl.program_id(2)
    t, s = blocks.outer, blocks.inner
    tile = row * static.q_tiles + div(block * t, static.q_tile)
    queries = pl.ds(row * (static.q_tiles * static.q_tile) + block * t, t)
    q_exists = static.exists(block * t, t, static.T)
    q_tH = static.load(q_ref, q_exists)
    parts = static.kv_tile // s
    first = starts[tile]

    def fold(state, s_ts, v_sH):
        """The online softmax after some more keys."""
        m_t, l_t, acc_tH = state
        m_new_t = jnp.maximum(m_t, jnp.max(s_ts, axis=1))
        p_ts = jnp.exp2(s_ts - m_new_t[:, None])
        rescale_t = jnp.exp2(m_t - m_new_t)
        pv_tH = static.dot(p_ts.astype(v_sH.dtype), v_sH, NN)
        return m_new_t, l_t * rescale_t + jnp.sum(p_ts, axis=1), acc_tH * rescale_t[:, None] + pv_tH

    def keys(n, state):
        start, place, flags = static.keys_of(entries[first + div(n, parts)], rem(n, parts), s, row)
        exists = static.exists(start, s, static.S, static.kv_tile)
        k_sH = static.load(k_ref.at[pl.ds(start, s), :], exists)
        s_ts, _ = static.softcap(static.dot(q_tH, k_sH, NT))
        s_ts = static.hide(s_ts, flags, lines, queries, pl.ds(place, s), key_major=False)
        return fold(state, s_ts, static.load(v_ref.at[pl.ds(start, s), :], exists))

    state = (
        jnp.full((t,), NOTHING, jnp.float32),
        jnp.zeros((t,), jnp.float32),
        jnp.zeros((t, static.padded_width), jnp.float32),
    )
    if anchor_refs:  # a few keys before the others, with a mask of their own
        anchor_k_ref, anchor_v_ref, visible_ref = anchor_refs
        anchor_exists = static.exists(0, anchor_k_ref.shape[0], anchor_k_ref.shape[0])
        s_tA, _ = static.softcap(static.dot(q_tH, static.load(anchor_k_ref, anchor_exists), NT))
        s_tA = jnp.where(visible_ref[queries, :] != 0, s_tA, MASKED)
        state = fold(state, s_tA, static.load(anchor_v_ref, anchor_exists))
    m_t, l_t, acc_tH = jax.lax.fori_loop(0, lengths[tile] * parts, keys, state)
    seen_t = l_t > 0
    l_t = jnp.where(seen_t, l_t, 1.0)
    plgpu.store(out_ref, (acc_tH / l_t[:, None]).astype(out_ref.dtype), mask=q_exists)
    lse_ref[...] = jnp.where(seen_t, m_t * (1 / LOG2E) + jnp.log(l_t), NOTHING)


def call(arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """out [B, T, N, H] and lse [B, T, N]."""
    static = arrays.static
    B, T, N, H = arrays.q_BTNH.shape
    W, G = static.padded_width, static.group
    blocks = blocks_lib.fit(blocks_lib.FORWARD, arrays.q_BTNH.dtype, W, static.q_tile, static.kv_tile)
    t = blocks.outer
    steps = pl.cdiv(T, t)
    small = arrays.small(arrays.plan.by_query)
    anchors, anchor_specs = (), ()
    if static.num_anchors:
        anchors = arrays.anchors()
        of_row = pl.BlockSpec((None, anchors[0].shape[1], None, W), lambda n, i, b: (b, 0, div(n, G), 0))
        anchor_specs = of_row, of_row, whole(anchors[2])
    q_block = pl.BlockSpec((None, t, None, W), lambda n, i, b: (b, i, n, 0))
    kv_row = pl.BlockSpec((None, static.S, None, W), lambda n, i, b: (b, 0, div(n, G), 0))
    out_BTNH, lse_BNt = run(
        functools.partial(_kernel, static=static, blocks=blocks),
        "anchor_attention_forward",
        blocks,
        grid=(N, steps, B),
        in_specs=[*map(whole, small), *anchor_specs, q_block, kv_row, kv_row],
        out_specs=[q_block, pl.BlockSpec((None, None, t), lambda n, i, b: (b, n, i))],
        out_shape=[
            output((B, T, N, H), arrays.q_BTNH.dtype, arrays.q_BTNH),
            output((B, N, steps * t), jnp.float32, arrays.q_BTNH),
        ],
    )(*small, *anchors, arrays.q_BTNH, arrays.k_BSKH, arrays.v_BSKH)
    return out_BTNH, jnp.swapaxes(lse_BNt[:, :, :T], 1, 2)
