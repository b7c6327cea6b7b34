"""The backward kernels: dq by blocks of queries, dk and dv by blocks of keys. Neither adds in memory."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from anchorjax.attention.kernels import LOG2E, NN, NT, div, output, rem
from anchorjax.attention.pallas_gpu import blocks as blocks_lib
from anchorjax.attention.pallas_gpu.arrays import Arrays
from anchorjax.attention.pallas_gpu.blocks import Blocks
from anchorjax.attention.pallas_gpu.tile import Static, run, whole


def _dq_kernel(entries, starts, lengths, *refs, static: Static, blocks: Blocks):
    """One block of queries of one head."""
    lines, (q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, dq_ref) = refs[:4], refs[4:]
    block, row = pl.program_id(1), pl.program_id(2)
    t, s = blocks.outer, blocks.inner
    tile = row * static.q_tiles + div(block * t, static.q_tile)
    queries = pl.ds(row * (static.q_tiles * static.q_tile) + block * t, t)
    q_exists = static.exists(block * t, t, static.T)
    q_tH, do_tH = static.load(q_ref, q_exists), static.load(do_ref, q_exists)
    lse_t, delta_t = lse_ref[...] * LOG2E, delta_ref[...]
    parts = static.kv_tile // s
    first = starts[tile]

    def keys(n, dq_tH):
        start, place, flags = static.keys_of(entries[first + div(n, parts)], rem(n, parts), s, row)
        exists = static.exists(start, s, static.S, static.kv_tile)
        k_sH = static.load(k_ref.at[pl.ds(start, s), :], exists)
        s_ts, slope = static.softcap(static.dot(q_tH, k_sH, NT))
        s_ts = static.hide(s_ts, flags, lines, queries, pl.ds(place, s), key_major=False)
        p_ts = jnp.exp2(s_ts - lse_t[:, None])
        dp_ts = static.dot(do_tH, static.load(v_ref.at[pl.ds(start, s), :], exists), NT)
        ds_ts = p_ts * (dp_ts - delta_t[:, None])
        if slope is not None:
            ds_ts *= slope
        return dq_tH + static.dot(ds_ts.astype(k_sH.dtype), k_sH, NN)

    zeros = jnp.zeros((t, static.padded_width), jnp.float32)
    dq_tH = jax.lax.fori_loop(0, lengths[tile] * parts, keys, zeros)
    plgpu.store(dq_ref, dq_tH * static.scale, mask=q_exists)


def _dkv_kernel(entries, starts, lengths, *refs, static: Static, blocks: Blocks):
    """One block of keys of one key head, over all query heads that share it; scores are key-major."""
    lines, (q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, dk_ref, dv_ref) = refs[:4], refs[4:]
    block, row = pl.program_id(1), pl.program_id(2)
    s, t = blocks.outer, blocks.inner
    tile = row * static.kv_tiles + div(block * s, static.kv_tile)
    keys = pl.ds(row * (static.kv_tiles * static.kv_tile) + block * s, s)
    kv_exists = static.exists(block * s, s, static.S)
    k_sH, v_sH = static.load(k_ref, kv_exists), static.load(v_ref, kv_exists)
    parts = static.q_tile // t
    first = starts[tile]

    def queries(n, sums):
        dk_sH, dv_sH = sums
        head, visit = rem(n, static.group), div(n, static.group)
        start, place, flags = static.queries_of(entries[first + div(visit, parts)], rem(visit, parts), t, row)
        exists = static.exists(start, t, static.T, static.q_tile)
        q_tH, do_tH = (static.load(ref.at[pl.ds(start, t), head, :], exists) for ref in (q_ref, do_ref))
        s_st, slope = static.softcap(static.dot(k_sH, q_tH, NT))
        s_st = static.hide(s_st, flags, lines, pl.ds(place, t), keys, key_major=True)
        lse_t, delta_t = lse_ref[head, pl.ds(start, t)] * LOG2E, delta_ref[head, pl.ds(start, t)]
        p_st = jnp.exp2(s_st - lse_t[None])
        dv_sH += static.dot(p_st.astype(do_tH.dtype), do_tH, NN)
        ds_st = p_st * (static.dot(v_sH, do_tH, NT) - delta_t[None])
        if slope is not None:
            ds_st *= slope
        dk_sH += static.dot(ds_st.astype(q_tH.dtype), q_tH, NN)
        return dk_sH, dv_sH

    zeros = jnp.zeros((s, static.padded_width), jnp.float32)
    dk_sH, dv_sH = jax.lax.fori_loop(0, lengths[tile] * (parts * static.group), queries, (zeros, zeros))
    plgpu.store(dk_ref, dk_sH * static.scale, mask=kv_exists)
    plgpu.store(dv_ref, dv_sH, mask=kv_exists)


def call(arrays: Arrays, dout_BTNH, lse_BTN, delta_BTN) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dq [B, T, N, H], dk and dv [B, S, K, H], all fp32 and without the anchors' share."""
    # A query without a key has the log-sum-exp NOTHING, one behind the row 0: both above MASKED, so weights are 0.
    inputs = (
        arrays.q_BTNH,
        arrays.k_BSKH,
        arrays.v_BSKH,
        dout_BTNH,
        arrays.by_head(lse_BTN),
        arrays.by_head(delta_BTN),
    )
    return _dq(arrays, inputs), *_dkv(arrays, inputs)


def _dq(arrays: Arrays, inputs) -> jax.Array:
    static = arrays.static
    B, T, N, H = arrays.q_BTNH.shape
    W, G = static.padded_width, static.group
    blocks = blocks_lib.fit(blocks_lib.DQ, arrays.q_BTNH.dtype, W, static.q_tile, static.kv_tile)
    t = blocks.outer
    small = arrays.small(arrays.plan.by_query)
    q_block = pl.BlockSpec((None, t, None, W), lambda n, i, b: (b, i, n, 0))
    q_scalars = pl.BlockSpec((None, None, t), lambda n, i, b: (b, n, i))
    kv_row = pl.BlockSpec((None, static.S, None, W), lambda n, i, b: (b, 0, div(n, G), 0))
    return run(
        functools.partial(_dq_kernel, static=static, blocks=blocks),
        "anchor_attention_dq",
        blocks,
        grid=(N, pl.cdiv(T, t), B),
        in_specs=[*map(whole, small), q_block, kv_row, kv_row, q_block, q_scalars, q_scalars],
        out_specs=q_block,
        out_shape=output((B, T, N, H), jnp.float32, arrays.q_BTNH),
    )(*small, *inputs)


def _dkv(arrays: Arrays, inputs) -> tuple[jax.Array, jax.Array]:
    static = arrays.static
    B, S, K, H = arrays.k_BSKH.shape
    W, G = static.padded_width, static.group
    blocks = blocks_lib.fit(blocks_lib.DKV, arrays.q_BTNH.dtype, W, static.kv_tile, static.q_tile)
    s = blocks.outer
    small = arrays.small(arrays.plan.by_key)
    kv_block = pl.BlockSpec((None, s, None, W), lambda k, j, b: (b, j, k, 0))
    q_row = pl.BlockSpec((None, static.T, G, W), lambda k, j, b: (b, 0, k, 0))
    q_scalars = pl.BlockSpec((None, G, static.q_tiles * static.q_tile), lambda k, j, b: (b, k, 0))
    return run(
        functools.partial(_dkv_kernel, static=static, blocks=blocks),
        "anchor_attention_dkv",
        blocks,
        grid=(K, pl.cdiv(S, s), B),
        in_specs=[*map(whole, small), q_row, kv_block, kv_block, q_row, q_scalars, q_scalars],
        out_specs=[kv_block, kv_block],
        out_shape=[output((B, S, K, H), jnp.float32, arrays.k_BSKH)] * 2,
    )(*small, *inputs)
