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

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from anchorjax.attention import anchors as anchors_lib
from anchorjax.attention.anchors import NOTHING
from anchorjax.attention.plan import (
    FIRST_OF_KV,
    FIRST_OF_Q,
    LAST_OF_KV,
    LAST_OF_Q,
    NEEDS_MASK,
    Plan,
    pad_to_tiles,
    unpack,
)
from anchorjax.attention.xla import NAME
from anchorjax.masks import Mask
from anchorjax.types import PAD_SEGMENT

LANES = 128  # of a vector register; its 8 sublanes are the other side
LOG2E = math.log2(math.e)
_MASKED = 2 * NOTHING  # below the softmax's initial maximum, so that exp2 of the difference is 0 and never 1
_NO_SEGMENT = -2  # of keys that no tile may see: pads, and anchors, which are done apart
_NT, _NN, _TN = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ()))


@dataclasses.dataclass(frozen=True)
class _Static:
    """What a kernel is compiled for."""

    q_tile: int
    kv_tile: int
    group: int  # query heads per key head
    q_tiles_per_row: int
    num_anchors: int
    scale: float
    window: int | None
    soft_cap: float | None
    exact: bool  # true fp32 products, for fp32 arrays
    interpret: bool

    def dot(self, x, y, dimensions):
        precision = jax.lax.Precision.HIGHEST if self.exact else None
        return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)

    def bend(self, s):
        """Dot products to logits in base 2, and the logits' derivative by the scaled dot products (None is 1)."""
        if self.soft_cap is None:
            return s * (self.scale * LOG2E), None
        ratio = jnp.tanh(s * (self.scale / self.soft_cap))
        return ratio * (self.soft_cap * LOG2E), 1.0 - ratio * ratio

    def visible(self, q_index, kv_index, q_segment, kv_segment):
        """`masks.allowed` for keys that are neither pads nor anchors."""
        rule = (q_segment == kv_segment) & (kv_index <= q_index)
        if self.window is not None:
            rule &= q_index - kv_index < self.window
        return rule


def apply(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, plan: Plan
) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of one device's arrays; the contract is that of `attention.attention_with_lse`.

    Off the TPU the kernels are interpreted, copies and semaphores included: for tests only.

    Raises:
      NotImplementedError: tiles that are not multiples of 128.
    """
    if plan.q_tile % LANES or plan.kv_tile % LANES:
        raise NotImplementedError(
            f"attention pallas_tpu: tiles of {plan.q_tile} x {plan.kv_tile}; allowed: multiples of {LANES}"
        )
    return _attend(q_BTNH, k_BSKH, v_BSKH, mask, plan)


@jax.custom_vjp
def _attend(q_BTNH, k_BSKH, v_BSKH, mask, plan):
    return _forward(q_BTNH, k_BSKH, v_BSKH, mask, plan)[0]


def _forward(q_BTNH, k_BSKH, v_BSKH, mask, plan):
    arrays = _Arrays(q_BTNH, k_BSKH, v_BSKH, mask, plan)
    out_NXH, lse_NX = _call_forward(arrays)
    out_BTNH = checkpoint_name(arrays.join(out_NXH), NAME)
    lse_BTN = checkpoint_name(arrays.join(lse_NX[..., None])[..., 0], NAME)
    return (out_BTNH, lse_BTN), (q_BTNH, k_BSKH, v_BSKH, mask, plan, out_BTNH, lse_BTN)


def _backward(residuals, cotangents):
    q_BTNH, k_BSKH, v_BSKH, mask, plan, out_BTNH, lse_BTN = residuals
    dout_BTNH, dlse_BTN = cotangents
    delta_BTN = jnp.sum(dout_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), -1) - dlse_BTN
    arrays = _Arrays(q_BTNH, k_BSKH, v_BSKH, mask, plan)
    dq_NXH, dk_KYH, dv_KYH = _call_backward(arrays, dout_BTNH, lse_BTN, delta_BTN)
    anchors = anchors_lib.find(k_BSKH, v_BSKH, mask)
    dq_anchor, dk_anchor, dv_anchor = anchors_lib.gradients(q_BTNH, dout_BTNH, lse_BTN, delta_BTN, anchors, mask)
    dq_BTNH = arrays.join(dq_NXH) + dq_anchor
    dk_BSKH = anchors_lib.add_at(arrays.join_keys(dk_KYH), dk_anchor, anchors)
    dv_BSKH = anchors_lib.add_at(arrays.join_keys(dv_KYH), dv_anchor, anchors)
    dtype = q_BTNH.dtype
    return dq_BTNH.astype(dtype), dk_BSKH.astype(dtype), dv_BSKH.astype(dtype), None, None


_attend.defvjp(_forward, _backward)


class _Arrays:
    """One call's arrays as the kernels read them: heads in front, the rows end to end, each padded to tiles."""

    def __init__(self, q_BTNH, k_BSKH, v_BSKH, mask: Mask, plan: Plan):
        self.B, self.T, N, H = q_BTNH.shape
        self.S, K = k_BSKH.shape[1:3]
        self.plan = plan
        self.q_NXH = self.flatten(q_BTNH, plan.q_tile)
        self.k_KYH, self.v_KYH = self.flatten(k_BSKH, plan.kv_tile), self.flatten(v_BSKH, plan.kv_tile)
        self.q_index_1X = self._line(mask.q_index_BT, plan.q_tile, 0)
        self.q_segment_1X = self._line(mask.q_segment_ids_BT, plan.q_tile, PAD_SEGMENT)
        hidden_BS = (mask.kv_segment_ids_BS == PAD_SEGMENT) | (mask.kv_index_BS < mask.num_anchors)
        self.kv_index_1Y = self._line(mask.kv_index_BS, plan.kv_tile, 0)
        self.kv_segment_1Y = self._line(
            jnp.where(hidden_BS, _NO_SEGMENT, mask.kv_segment_ids_BS), plan.kv_tile, _NO_SEGMENT
        )
        self.q_tiles, self.kv_tiles = self.q_NXH.shape[1] // plan.q_tile, self.k_KYH.shape[1] // plan.kv_tile
        self.static = _Static(
            q_tile=plan.q_tile,
            kv_tile=plan.kv_tile,
            group=N // K,
            q_tiles_per_row=self.q_tiles // self.B,
            num_anchors=mask.num_anchors,
            scale=H**-0.5,
            window=mask.window,
            soft_cap=mask.soft_cap,
            exact=q_BTNH.dtype == jnp.float32,
            interpret=jax.default_backend() != "tpu",
        )
        self._find_anchors(k_BSKH, v_BSKH, mask)

    def _find_anchors(self, k_BSKH, v_BSKH, mask):
        """k, v [K, B, A16, H] in their dtype, and which exist [B * A]; 16 rows are one bf16 register."""
        A = max(1, mask.num_anchors)
        is_anchor_BAS = mask.kv_index_BS[:, None] == jnp.arange(A)[:, None]
        is_anchor_BAS &= mask.kv_segment_ids_BS[:, None] != PAD_SEGMENT
        rows_B1, slots_BA = jnp.arange(self.B)[:, None], jnp.argmax(is_anchor_BAS, -1)
        pad = ((0, 0), (0, 0), (0, -A % 16), (0, 0))
        self.anchor_k_KBAH, self.anchor_v_KBAH = (
            jnp.pad(x[rows_B1, slots_BA].transpose(2, 0, 1, 3), pad) for x in (k_BSKH, v_BSKH)
        )
        self.anchor_exists = jnp.any(is_anchor_BAS, -1).astype(jnp.int32).reshape(-1)

    def flatten(self, x_BTNH, tile):
        """[B, T, N, H] -> [N, X, H]."""
        x_BItNH = pad_to_tiles(x_BTNH, tile, 0)
        return x_BItNH.transpose(3, 0, 1, 2, 4).reshape(x_BItNH.shape[3], -1, x_BItNH.shape[4])

    def join(self, x_NXH):
        """The inverse of `flatten`, for queries."""
        x_NBXH = x_NXH.reshape(x_NXH.shape[0], self.B, -1, x_NXH.shape[2])
        return x_NBXH.transpose(1, 2, 0, 3)[:, : self.T]

    def join_keys(self, x_KYH):
        x_KBYH = x_KYH.reshape(x_KYH.shape[0], self.B, -1, x_KYH.shape[2])
        return x_KBYH.transpose(1, 2, 0, 3)[:, : self.S]

    @staticmethod
    def _line(x_BT, tile, fill):
        return pad_to_tiles(x_BT, tile, fill).reshape(1, -1)


def _compiler_params(static: _Static, grid_rank: int):
    semantics = ("parallel",) + ("arbitrary",) * (grid_rank - 1)
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=_VMEM_LIMIT)


_VMEM_LIMIT = 100 * 2**20


def _interpret(static: _Static):
    return pltpu.InterpretParams() if static.interpret else False


def _column(row_1t):
    """A row of numbers along lanes as a column, repeated over 128 lanes: [1, t] -> [t, 128]."""
    return jnp.broadcast_to(row_1t, (LANES, row_1t.shape[1])).T


def _lanes(x_t128, width):
    """[t, 128] of equal lanes -> [t, width]."""
    if width <= LANES:
        return x_t128[:, :width]
    repeated = jnp.tile(x_t128, (1, -(-width // LANES)))
    return repeated[:, :width]


# ---------------------------------------------------------------- forward


def _forward_kernel(
    entries,
    anchor_exists,
    q_ref,
    k_ref,
    v_ref,
    q_index_ref,
    q_segment_ref,
    kv_index_ref,
    kv_segment_ref,
    anchor_k_ref,
    anchor_v_ref,
    out_ref,
    lse_ref,
    m_ref,
    l_ref,
    acc_ref,
    q_index_column,
    q_segment_column,
    *,
    static: _Static,
):
    r, _, flags = unpack(entries[pl.program_id(1)])
    q_tH = q_ref[...]
    width = q_tH.shape[1]

    @pl.when(flags & FIRST_OF_Q != 0)
    def _start():
        q_index_column[...] = _column(q_index_ref[...])
        q_segment_column[...] = _column(q_segment_ref[...])
        m_ref[...] = jnp.full_like(m_ref, NOTHING)
        l_ref[...] = jnp.zeros_like(l_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)
        if static.num_anchors:
            s_tA, _ = static.bend(static.dot(q_tH, anchor_k_ref[...], _NT))
            row = r // static.q_tiles_per_row
            for a in range(static.num_anchors):
                exists = anchor_exists[row * static.num_anchors + a] != 0
                sees = exists & (q_index_column[...] >= a) & (q_segment_column[...] != PAD_SEGMENT)
                s = jnp.where(sees, jnp.broadcast_to(s_tA[:, a : a + 1], sees.shape), _MASKED)
                m = jnp.maximum(m_ref[...], s)
                rescale, p = jnp.exp2(m_ref[...] - m), jnp.exp2(s - m)
                l_ref[...] = l_ref[...] * rescale + p
                value = anchor_v_ref[a : a + 1, :].astype(jnp.float32)
                acc_ref[...] = acc_ref[...] * _lanes(rescale, width) + _lanes(p, width) * value
                m_ref[...] = m

    def tile(masked: bool):
        s_ts, _ = static.bend(static.dot(q_tH, k_ref[...], _NT))
        if masked:
            visible = static.visible(
                _lanes(q_index_column[...], static.kv_tile),
                kv_index_ref[...],
                _lanes(q_segment_column[...], static.kv_tile),
                kv_segment_ref[...],
            )
            s_ts = jnp.where(visible, s_ts, _MASKED)
        m = jnp.maximum(m_ref[...], jnp.max(s_ts, axis=1, keepdims=True))
        p_ts = jnp.exp2(s_ts - _lanes(m, static.kv_tile))
        rescale = jnp.exp2(m_ref[...] - m)
        l_ref[...] = l_ref[...] * rescale + jnp.sum(p_ts, axis=1, keepdims=True)
        m_ref[...] = m
        pv_tH = static.dot(p_ts.astype(v_ref.dtype), v_ref[...], _NN)
        acc_ref[...] = acc_ref[...] * _lanes(rescale, width) + pv_tH

    pl.when(flags & NEEDS_MASK != 0)(lambda: tile(True))
    pl.when(flags & NEEDS_MASK == 0)(lambda: tile(False))

    @pl.when(flags & LAST_OF_Q != 0)
    def _finish():
        seen = l_ref[...] > 0
        l = jnp.where(seen, l_ref[...], 1.0)
        out_ref[...] = (acc_ref[...] / _lanes(l, width)).astype(out_ref.dtype)
        lse = jnp.where(seen, m_ref[...] * (1 / LOG2E) + jnp.log(l), NOTHING)
        lse_ref[...] = lse.T[:1]


def _call_forward(arrays: _Arrays) -> tuple[jax.Array, jax.Array]:
    """out [N, X, H] and lse [N, X]."""
    static, visits = arrays.static, arrays.plan.by_query
    N, X, H = arrays.q_NXH.shape
    t, s = static.q_tile, static.kv_tile
    tiles = visits.tiles_per_chunk

    def q_block(shape, index):
        return pl.BlockSpec(shape, lambda n, g, entries, exists, start: index(n, unpack(entries[g])[0]))

    def kv_block(shape, index):
        return pl.BlockSpec(shape, lambda n, g, entries, exists, start: index(n, unpack(entries[g])[1]))

    def kernel(entries, exists, start, *refs):
        _forward_kernel(entries, exists, *refs, static=static)

    def chunk(entries_P, count, start):
        """The query tiles start .. start + tiles."""
        here = lambda shape, index: pl.BlockSpec(  # noqa: E731 - outputs hold this chunk's tiles only
            shape, lambda n, g, entries, exists, start: index(n, unpack(entries[g])[0] - start[0])
        )
        anchor_block = q_block((None, None, *arrays.anchor_k_KBAH.shape[2:]), lambda n, r: (n // static.group, r // static.q_tiles_per_row, 0, 0))  # fmt: skip
        return pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=3,
                grid=(N, count),
                in_specs=[
                    q_block((None, t, H), lambda n, r: (n, r, 0)),
                    kv_block((None, s, H), lambda n, c: (n // static.group, c, 0)),
                    kv_block((None, s, H), lambda n, c: (n // static.group, c, 0)),
                    q_block((1, t), lambda n, r: (0, r)),
                    q_block((1, t), lambda n, r: (0, r)),
                    kv_block((1, s), lambda n, c: (0, c)),
                    kv_block((1, s), lambda n, c: (0, c)),
                    anchor_block,
                    anchor_block,
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
                jax.ShapeDtypeStruct((N, tiles * t, H), arrays.q_NXH.dtype),
                jax.ShapeDtypeStruct((N, 1, tiles * t), jnp.float32),
            ],
            compiler_params=_compiler_params(static, 2),
            interpret=_interpret(static),
            name="anchor_attention_forward",
        )(
            entries_P,
            arrays.anchor_exists,
            start,
            arrays.q_NXH,
            arrays.k_KYH,
            arrays.v_KYH,
            arrays.q_index_1X,
            arrays.q_segment_1X,
            arrays.kv_index_1Y,
            arrays.kv_segment_1Y,
            arrays.anchor_k_KBAH,
            arrays.anchor_v_KBAH,
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
