"""The forward kernel: an online softmax per query tile, started from the anchor keys."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from anchorjax.attention.anchors import NOTHING
from anchorjax.attention.kernels import LOG2E, MASKED, NN, NT, div, output
from anchorjax.attention.pallas_tpu import LANES
from anchorjax.attention.pallas_tpu.arrays import Arrays
from anchorjax.attention.pallas_tpu.tile import Static, column, lanes, run
from anchorjax.attention.plan import FIRST_OF_Q, LAST_OF_Q, NEEDS_MASK, unpack
from anchorjax.masks import allowed_in_tile, sees_anchor


def _kernel(
    entries,
    anchor_exists,
    q_ref,
    k_ref,
    v_ref,
    q_tokens_ref,
    kv_tokens_ref,
    anchors_ref,
    out_ref,
    lse_ref,
    m_ref,
    l_ref,
    acc_ref,
    q_index_column,
    q_segment_column,
    *,
    static: Static,
):
    """One tile of one query head.

    Of the scratch, m is the same in all lanes, and l is a sum of its own in each, which are added up at the end: a
    reduction across lanes less in every tile (6% of the bundles at 1024 x 512 on v6e).
    """
    r, _, flags = unpack(entries[pl.program_id(1)])
    q_tH = q_ref[...]
    width = q_tH.shape[1]

    @pl.when(flags & FIRST_OF_Q != 0)
    def _start():
        q_index_column[...] = column(q_tokens_ref[:1])
        q_segment_column[...] = column(q_tokens_ref[1:])
        m_ref[...] = jnp.full_like(m_ref, NOTHING)
        l_ref[...] = jnp.zeros_like(l_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)
        if static.num_anchors:
            s_tA, _ = static.softcap(static.dot(q_tH, anchors_ref[0], NT))
            row = div(r, static.q_tiles_per_row)
            for a in range(static.num_anchors):
                exists = anchor_exists[row * static.num_anchors + a] != 0
                sees = exists & sees_anchor(q_index_column[...], q_segment_column[...], a)
                s = jnp.where(sees, jnp.broadcast_to(s_tA[:, a : a + 1], sees.shape), MASKED)
                m = jnp.maximum(m_ref[...], s)
                rescale, p = jnp.exp2(m_ref[...] - m), jnp.exp2(s - m)
                l_ref[...] = l_ref[...] * rescale + p * (1 / LANES)  # a power of two: exact
                value = anchors_ref[1, a : a + 1, :].astype(jnp.float32)
                acc_ref[...] = acc_ref[...] * lanes(rescale, width) + lanes(p, width) * value
                m_ref[...] = m

    def tile(masked: bool):
        s_ts, _ = static.softcap(static.dot(q_tH, k_ref[...], NT))
        if masked:
            visible = allowed_in_tile(
                lanes(q_index_column[...], static.kv_tile),
                kv_tokens_ref[:1],
                lanes(q_segment_column[...], static.kv_tile),
                kv_tokens_ref[1:],
                static.window,
            )
            s_ts = jnp.where(visible, s_ts, MASKED)
        m = jnp.maximum(m_ref[...], jnp.max(s_ts, axis=1, keepdims=True))
        p_ts = jnp.exp2(s_ts - lanes(m, static.kv_tile))
        rescale = jnp.exp2(m_ref[...] - m)
        parts = (p_ts[:, start : start + LANES] for start in range(0, static.kv_tile, LANES))
        l_ref[...] = l_ref[...] * rescale + sum(parts)
        m_ref[...] = m
        pv_tH = static.dot(p_ts.astype(v_ref.dtype), v_ref[...], NN)
        acc_ref[...] = acc_ref[...] * lanes(rescale, width) + pv_tH

    pl.when(flags & NEEDS_MASK != 0)(lambda: tile(True))
    pl.when(flags & NEEDS_MASK == 0)(lambda: tile(False))

    @pl.when(flags & LAST_OF_Q != 0)
    def _finish():
        l = jnp.sum(l_ref[...], axis=1, keepdims=True)
        seen = l > 0
        l = jnp.broadcast_to(jnp.where(seen, l, 1.0), l_ref.shape)
        out_ref[...] = (acc_ref[...] / lanes(l, width)).astype(out_ref.dtype)
        lse = jnp.where(seen, m_ref[...] * (1 / LOG2E) + jnp.log(l), NOTHING)
        lse_ref[...] = lse.T[:1]


def call(arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """out [N, X, H] and lse [N, X]."""
    static, visits = arrays.static, arrays.plan.by_query
    N, X, H = arrays.q_NXH.shape
    t, s = static.q_tile, static.kv_tile
    tiles = visits.tiles_per_chunk

    def q_block(shape, index):
        return pl.BlockSpec(shape, lambda n, g, entries, exists, start: index(n, unpack(entries[g])[0]))

    def kv_block(shape, index):
        return pl.BlockSpec(shape, lambda n, g, entries, exists, start: index(n, unpack(entries[g])[1]))

    def row_of_anchors(n, r):
        return 0, div(n, static.group), div(r, static.q_tiles_per_row), 0, 0

    def kernel(entries, exists, start, *refs):
        _kernel(entries, exists, *refs, static=static)

    def chunk(entries_P, count, start):
        """The query tiles start .. start + tiles."""
        here = lambda shape, index: pl.BlockSpec(  # noqa: E731 - outputs hold this chunk's tiles only
            shape, lambda n, g, entries, exists, start: index(n, unpack(entries[g])[0] - start[0])
        )
        arguments = (
            entries_P,
            arrays.anchor_exists,
            start,
            arrays.q_NXH,
            arrays.k_KYH,
            arrays.v_KYH,
            arrays.q_tokens_2X,
            arrays.kv_tokens_2Y,
            arrays.anchors_2KBAH,
        )
        return run(
            kernel,
            arguments,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=3,
                grid=(N, count),
                in_specs=[
                    q_block((None, t, H), lambda n, r: (n, r, 0)),
                    kv_block((None, s, H), lambda n, c: (div(n, static.group), c, 0)),
                    kv_block((None, s, H), lambda n, c: (div(n, static.group), c, 0)),
                    q_block((2, t), lambda n, r: (0, r)),
                    kv_block((2, s), lambda n, c: (0, c)),
                    q_block((2, None, None, *arrays.anchors_2KBAH.shape[3:]), row_of_anchors),
                ],
                out_specs=[
                    here((None, t, H), lambda n, r: (n, r, 0)),
                    here((None, 1, t), lambda n, r: (n, 0, r)),
                ],
                scratch_shapes=[
                    pltpu.VMEM((t, LANES), jnp.float32),
                    pltpu.VMEM((t, LANES), jnp.float32),
                    pltpu.VMEM((t, H), jnp.float32),
                    pltpu.VMEM((t, LANES), jnp.int32),
                    pltpu.VMEM((t, LANES), jnp.int32),
                ],
            ),
            out_shape=[
                output((N, tiles * t, H), arrays.q_NXH.dtype, arrays.q_NXH),
                output((N, 1, tiles * t), jnp.float32, arrays.q_NXH),
            ],
            name="anchor_attention_forward",
        )

    out_CNxH, lse_CN1x = _over_chunks(chunk, visits)
    out_NXH = jnp.moveaxis(out_CNxH, 0, 1).reshape(N, -1, H)[:, :X]
    return out_NXH, jnp.moveaxis(lse_CN1x, 0, 1).reshape(N, -1)[:, :X]


def _over_chunks(chunk, visits):
    C = visits.entries_CP.shape[0]
    starts = jnp.arange(C, dtype=jnp.int32)[:, None] * visits.tiles_per_chunk
    inputs = (visits.entries_CP, visits.counts_C1[:, 0], starts)
    if C == 1:
        return jax.tree.map(lambda x: x[None], chunk(*(x[0] for x in inputs)))
    return jax.lax.map(lambda x: chunk(*x), inputs)
