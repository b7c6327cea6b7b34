"""The backward kernel: one pass by key tile, with dq summed in place in HBM by hand-made copies."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from anchorjax.attention.kernels import LOG2E, MASKED, NN, NT, TN, div, output, rem
from anchorjax.attention.pallas_tpu import LANES
from anchorjax.attention.pallas_tpu.arrays import Arrays
from anchorjax.attention.pallas_tpu.tile import Static, column, lanes, run
from anchorjax.attention.plan import FIRST_OF_KV, FIRST_OF_Q, LAST_OF_KV, NEEDS_MASK, unpack
from anchorjax.masks import allowed_in_tile


def _kernel(
    entries,
    start,
    q_ref,
    do_ref,
    scalars_ref,
    k_ref,
    v_ref,
    q_tokens_ref,
    kv_tokens_ref,
    _,
    dq_hbm,
    dk_ref,
    dv_ref,
    dk_sum,
    dv_sum,
    dq_read,
    dq_write,
    kv_index_column,
    kv_segment_column,
    read_done,
    write_done,
    *,
    static: Static,
):
    """One tile of one query head; scores are key-major, so that lse and delta lie along lanes as they come."""
    head, n, g = (pl.program_id(axis) for axis in range(3))
    step, steps = n * static.group + g, pl.num_programs(1) * static.group
    _, _, flags = unpack(entries[n])
    slot = rem(step, 2)

    def dq_tile(of_step):
        """Where in HBM the dq of a step's query tile and head lies."""
        tile, _, _ = unpack(entries[div(of_step, static.group)])
        query_head = head * static.group + rem(of_step, static.group)
        return dq_hbm.at[query_head, pl.ds(tile * static.q_tile, static.q_tile), :]

    def write(of_step):
        return pltpu.make_async_copy(dq_write.at[rem(of_step, 2)], dq_tile(of_step), write_done.at[rem(of_step, 2)])

    def awaited_early(of_step):
        """Whether the step after `of_step` needed its tile at once. Only one query head comes back so soon."""
        if static.group > 1:
            return jnp.bool_(False)
        this, next_one = (unpack(entries[jnp.clip(s, 0, steps - 1)])[0] for s in (of_step, of_step + 1))
        return this == next_one

    # Before the tile is read, every write that could be of it must have landed; the one of two steps ago has
    # had a whole step's time and its buffer is needed below.
    pl.when((step >= 2) & ~awaited_early(step - 2))(lambda: write(step - 2).wait())
    pl.when((step >= 1) & awaited_early(step - 1))(lambda: write(step - 1).wait())
    read = pltpu.make_async_copy(dq_tile(step), dq_read, read_done)
    # The first key tile of a query tile comes first in this order too: it finds no sum to read.
    is_first = flags & FIRST_OF_Q != 0
    pl.when(~is_first)(lambda: read.start())

    @pl.when((flags & FIRST_OF_KV != 0) & (g == 0))
    def _start():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)
        kv_index_column[...] = column(kv_tokens_ref[:1])
        kv_segment_column[...] = column(kv_tokens_ref[1:])

    def tile(masked: bool):
        q_tH, do_tH, k_sH = q_ref[...], do_ref[...], k_ref[...]
        s_st, slope = static.softcap(static.dot(k_sH, q_tH, NT))
        if masked:
            visible = allowed_in_tile(
                q_tokens_ref[:1],
                lanes(kv_index_column[...], static.q_tile),
                q_tokens_ref[1:],
                lanes(kv_segment_column[...], static.q_tile),
                static.window,
            )
            s_st = jnp.where(visible, s_st, MASKED)
        p_st = jnp.exp2(s_st - scalars_ref[:1] * LOG2E)
        dv_sum[...] += static.dot(p_st.astype(do_tH.dtype), do_tH, NN)
        dp_st = static.dot(v_ref[...], do_tH, NT)
        ds_st = p_st * (dp_st - scalars_ref[1:])
        if slope is not None:
            ds_st *= slope
        ds_st = (ds_st * static.scale).astype(q_tH.dtype)
        dk_sum[...] += static.dot(ds_st, q_tH, NN)
        dq_write[slot] = static.dot(ds_st, k_sH, TN)

        @pl.when(~is_first)
        def _add():
            read.wait()
            dq_write[slot] += dq_read[...]

    pl.when(flags & NEEDS_MASK != 0)(lambda: tile(True))
    pl.when(flags & NEEDS_MASK == 0)(lambda: tile(False))
    write(step).start()

    @pl.when((flags & LAST_OF_KV != 0) & (g == static.group - 1))
    def _finish():
        dk_ref[...] = dk_sum[...]
        dv_ref[...] = dv_sum[...]

    @pl.when(step == steps - 1)
    def _drain():
        pl.when((step >= 1) & ~awaited_early(step - 1))(lambda: write(step - 1).wait())
        write(step).wait()


def call(arrays: Arrays, dout_BTNH, lse_BTN, delta_BTN) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dq [N, X, H], dk and dv [K, Y, H], all fp32 and without the anchors' share."""
    static, visits = arrays.static, arrays.plan.by_key
    (N, X, H), (K, Y, _) = arrays.q_NXH.shape, arrays.k_KYH.shape
    t, s, G = static.q_tile, static.kv_tile, static.group
    tiles = visits.tiles_per_chunk
    do_NXH = arrays.flatten(dout_BTNH, t)
    # A query without a key has the log-sum-exp NOTHING, one behind the row 0: both above MASKED, so weights are 0.
    scalars_N2X = jnp.stack([arrays.flatten(x[..., None], t)[..., 0] for x in (lse_BTN, delta_BTN)], 1)

    def q_block(shape, index):
        return pl.BlockSpec(shape, lambda k, n, g, entries, start: index(k * G + g, unpack(entries[n])[0]))

    def kv_block(shape, index):
        return pl.BlockSpec(shape, lambda k, n, g, entries, start: index(k, unpack(entries[n])[1]))

    def kv_block_here(shape, index):
        return pl.BlockSpec(shape, lambda k, n, g, entries, start: index(k, unpack(entries[n])[1] - start[0]))

    q_arrays = q_block((None, t, H), lambda n, r: (n, r, 0))
    q_scalars = q_block((None, 2, t), lambda n, r: (n, 0, r))
    kv_arrays = kv_block((None, s, H), lambda k, c: (k, c, 0))

    def chunk(dq_NXH, x):
        """The key tiles start .. start + tiles; adds to dq in place."""
        entries_P, count, start = x
        arguments = (
            entries_P,
            start,
            arrays.q_NXH,
            do_NXH,
            scalars_N2X,
            arrays.k_KYH,
            arrays.v_KYH,
            arrays.q_tokens_2X,
            arrays.kv_tokens_2Y,
            dq_NXH,
        )
        dq_NXH, dk_KyH, dv_KyH = run(
            functools.partial(_kernel, static=static),
            arguments,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(K, count, G),
                in_specs=[
                    *(q_arrays, q_arrays, q_scalars, kv_arrays, kv_arrays),
                    q_block((2, t), lambda n, r: (0, r)),
                    kv_block((2, s), lambda k, c: (0, c)),
                    pl.BlockSpec(memory_space=pl.ANY),
                ],
                out_specs=[
                    pl.BlockSpec(memory_space=pl.ANY),
                    *[kv_block_here((None, s, H), lambda k, c: (k, c, 0))] * 2,
                ],
                scratch_shapes=[
                    *[pltpu.VMEM((s, H), jnp.float32)] * 2,
                    pltpu.VMEM((t, H), jnp.float32),
                    pltpu.VMEM((2, t, H), jnp.float32),
                    *[pltpu.VMEM((s, LANES), jnp.int32)] * 2,
                    pltpu.SemaphoreType.DMA,
                    pltpu.SemaphoreType.DMA((2,)),
                ],
            ),
            out_shape=[
                output((N, X, H), jnp.float32, arrays.q_NXH),
                *[output((K, tiles * s, H), jnp.float32, arrays.k_KYH)] * 2,
            ],
            input_output_aliases={9: 0},  # dq, counted with the two scalar arrays
            name="anchor_attention_backward",
        )
        return dq_NXH, (dk_KyH, dv_KyH)

    C = visits.entries_CP.shape[0]
    starts_C1 = jnp.arange(C, dtype=jnp.int32)[:, None] * tiles
    # Not zeros that must be written: each tile's first visit overwrites it.
    dq_NXH, dkv_CKyH = jax.lax.scan(
        chunk, jnp.zeros_like(arrays.q_NXH, jnp.float32), (visits.entries_CP, visits.counts_C1[:, 0], starts_C1)
    )
    dk_KYH, dv_KYH = (jnp.moveaxis(x, 0, 1).reshape(K, -1, H)[:, :Y] for x in dkv_CKyH)
    return dq_NXH, dk_KYH, dv_KYH
