"""Blockwise attention in plain XLA over live tiles only. It is the CPU's default and runs on every backend.

Forward: for each query tile an online softmax over its live key tiles, started from the anchor keys
(m their largest logit, l their sum, acc their weighted values), so that the anchor costs no tile.
Backward: one pass over the live tiles by key tile, five matmuls each. dk and dv of a key tile stay in the
loop's carry; dq is accumulated in place. The anchors' gradients are closed forms of the log-sum-exp.
All sums are fp32. Memory is O(T): nothing of shape [T, S] exists. Trip counts are data, so no layout of
documents is ever compiled for.

Sources: online softmax, Milakov & Gimelshein (arXiv 1805.02867); tiled forward and backward,
FlashAttention-2 (arXiv 2307.08691, Algorithms 1 and 2). Letters: R query tiles and M key tiles of all rows,
numbered across rows as in the plan; t, s tokens of one query and one key tile.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from anchorjax import precision
from anchorjax.attention import anchors as anchors_lib
from anchorjax.attention import gradient
from anchorjax.attention.anchors import NOTHING, softcap
from anchorjax.attention.plan import NEEDS_MASK, SMALLEST_TILE, Plan, pad_to_tiles, refused_tile, unpack
from anchorjax.masks import NO_SEGMENT, allowed_in_tile, tile_segment_ids
from anchorjax.types import PAD_SEGMENT

BACKEND = None  # any


def default_tiles(device_kind: str, seq_len: int = 0) -> tuple[int, int]:
    """(q_tile, kv_tile) in tokens: the fastest on CPUs (benchmarks/attention/attention_tiles.py)."""
    return 256, 256


def supports(q_tile: int, kv_tile: int, head_dim: int = 1, dtype: str = "float32") -> tuple[str, str] | None:
    """None, or (the argument that is not supported, what is allowed)."""
    return refused_tile(q_tile, kv_tile, lambda tile: tile >= SMALLEST_TILE, f"{SMALLEST_TILE} or more")


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of one device's arrays; the contract is that of `attention.attention_with_lse`."""
    return gradient.attend(forward_pass, backward_pass, q_BTNH, k_BSKH, v_BSKH, plan)


def forward_pass(q_BTNH, k_BSKH, v_BSKH, plan):
    tiles, mask = _Tiles(q_BTNH, k_BSKH, v_BSKH, plan), plan.mask
    visits, entries = plan.by_query, plan.by_query.entries_CP.reshape(-1)
    anchors = anchors_lib.find(k_BSKH, v_BSKH, mask)

    def query_tile(x):
        r, start, length, q_tNH, sees_tA = x
        q_KGtH = tiles.heads_first(q_tNH) * tiles.scale

        def key_tile(n, state):
            _, c, flags = unpack(entries[n])
            s_KGts, _ = softcap(tiles.matmul("kgth,ksh->kgts", q_KGtH, tiles.k_MKsH[c]), mask.soft_cap)

            def add(state, masked: bool):
                m_KGt, l_KGt, acc_KGtH = state
                s = jnp.where(tiles.visible(r, c, 0, 1), s_KGts, -jnp.inf) if masked else s_KGts
                m_new_KGt = jnp.maximum(m_KGt, jnp.max(s, -1))
                p_KGts = jnp.exp(s - m_new_KGt[..., None])
                rescale_KGt = jnp.exp(m_KGt - m_new_KGt)
                pv_KGtH = tiles.matmul("kgts,ksh->kgth", p_KGts, tiles.v_MKsH[c])
                l_KGt = l_KGt * rescale_KGt + jnp.sum(p_KGts, -1)
                return m_new_KGt, l_KGt, acc_KGtH * rescale_KGt[..., None] + pv_KGtH

            # Only tiles at the edge of a document compare segments and indices.
            masked, whole = functools.partial(add, masked=True), functools.partial(add, masked=False)
            return jax.lax.cond(flags & NEEDS_MASK != 0, masked, whole, state)

        m_tN, l_tN, acc_tNH = tiles.anchor_state(r, q_tNH, sees_tA, anchors)
        state = tiles.scalars_first(m_tN), tiles.scalars_first(l_tN), tiles.heads_first(acc_tNH)
        m_KGt, l_KGt, acc_KGtH = jax.lax.fori_loop(start, start + length, key_tile, state)
        seen = l_KGt > 0
        l_KGt = jnp.where(seen, l_KGt, 1.0)
        lse_KGt = jnp.where(seen, m_KGt + jnp.log(l_KGt), NOTHING)
        return tiles.heads_last(acc_KGtH / l_KGt[..., None]).astype(q_BTNH.dtype), tiles.scalars_last(lse_KGt)

    sees_RtA = _rows(anchors.visible_BTA, plan.q_tile, False)
    xs = tiles.query_numbers, visits.starts_1R[0], visits.lengths_1R[0], tiles.q_RtNH, sees_RtA
    out_RtNH, lse_RtN = jax.lax.map(query_tile, xs)
    return tiles.join(out_RtNH, tiles.T), tiles.join(lse_RtN, tiles.T)


def backward_pass(q_BTNH, k_BSKH, v_BSKH, plan, dout_BTNH, lse_BTN, delta_BTN):
    tiles, mask = _Tiles(q_BTNH, k_BSKH, v_BSKH, plan), plan.mask
    visits, entries = plan.by_key, plan.by_key.entries_CP.reshape(-1)
    # Scores are key-major, dq is transposed, and q and do come in both layouts: then no matmul needs a transposed copy
    # of a tile, which took a third of the time of this loop.
    q_RKGtH, q_RKHGt = tiles.both_layouts(tiles.q_RtNH, tiles.scale)
    do_RKGtH, do_RKHGt = tiles.both_layouts(_rows(dout_BTNH, plan.q_tile, 0), 1.0)
    lse_RKGt, delta_RKGt = (jax.vmap(tiles.scalars_first)(_rows(x, plan.q_tile, 0)) for x in (lse_BTN, delta_BTN))

    def key_tile(dq_RKHGt, x):
        c, start, length, k_KsH, v_KsH = x
        k_KHs = k_KsH.swapaxes(1, 2)

        def query_tile(n, carry):
            dq_RKHGt, dk_KsH, dv_KsH = carry
            r, _, _ = unpack(entries[n])
            s_KsGt, slope = softcap(tiles.matmul("ksh,khgt->ksgt", k_KsH, q_RKHGt[r]), mask.soft_cap)
            dp_KsGt = tiles.matmul("ksh,khgt->ksgt", v_KsH, do_RKHGt[r])
            # Every tile compares: with a branch, as in the forward pass, both passes took 4% to 16% longer on a CPU,
            # whose XLA splits no loop inside of a branch over cores.
            s_KsGt = jnp.where(tiles.visible(r, c, 1, 0)[:, None], s_KsGt, -jnp.inf)
            p_KsGt = jnp.exp(s_KsGt - lse_RKGt[r][:, None])
            ds_KsGt = p_KsGt * (dp_KsGt - delta_RKGt[r][:, None]) * slope
            dv_KsH += tiles.matmul("ksgt,kgth->ksh", p_KsGt, do_RKGtH[r])
            dk_KsH += tiles.matmul("ksgt,kgth->ksh", ds_KsGt, q_RKGtH[r])
            return dq_RKHGt.at[r].add(tiles.matmul("khs,ksgt->khgt", k_KHs, ds_KsGt)), dk_KsH, dv_KsH

        zero_KsH = jnp.zeros_like(k_KsH)
        dq_RKHGt, *dkv = jax.lax.fori_loop(start, start + length, query_tile, (dq_RKHGt, zero_KsH, zero_KsH))
        return dq_RKHGt, [x.swapaxes(0, 1) for x in dkv]

    numbers = jnp.arange(tiles.k_MKsH.shape[0])
    xs = numbers, visits.starts_1R[0], visits.lengths_1R[0], tiles.k_MKsH, tiles.v_MKsH
    dq_RKHGt, dkv_MsKH = jax.lax.scan(key_tile, jnp.zeros_like(q_RKHGt), xs)
    dq_RtNH = jax.lax.map(lambda x_KHGt: tiles.heads_last(jnp.moveaxis(x_KHGt, 1, 3)) * tiles.scale, dq_RKHGt)
    return tiles.join(dq_RtNH, tiles.T), *(tiles.join(x, tiles.S) for x in dkv_MsKH)


class _Tiles:
    """One call's arrays cut into tiles, and how one tile's queries are laid out.

    Inside a tile the head axes come first and all is fp32. Queries are transposed tile by tile, inside the loops:
    transposed copies of all of them took as long as a tenth of a packed row's live tiles.
    """

    def __init__(self, q_BTNH, k_BSKH, v_BSKH, plan: Plan):
        self.B, self.T, self.S = *q_BTNH.shape[:2], k_BSKH.shape[1]
        self.K, self.scale = k_BSKH.shape[2], q_BTNH.shape[-1] ** -0.5
        self.mask = mask = plan.mask
        self.precision = precision.of(q_BTNH.dtype)
        self.q_RtNH = _rows(q_BTNH, plan.q_tile, 0)
        self.query_numbers = jnp.arange(self.q_RtNH.shape[0])
        self.k_MKsH, self.v_MKsH = (
            jax.lax.map(lambda x_sKH: x_sKH.swapaxes(0, 1).astype(jnp.float32), _rows(x, plan.kv_tile, 0))
            for x in (k_BSKH, v_BSKH)
        )
        self.q_index_Rt = _rows(mask.q_index_BT, plan.q_tile, 0)
        self.q_segment_Rt = _rows(mask.q_segment_ids_BT, plan.q_tile, PAD_SEGMENT)
        self.kv_index_Ms = _rows(mask.kv_index_BS, plan.kv_tile, 0)
        self.kv_segment_Ms = _rows(tile_segment_ids(mask), plan.kv_tile, NO_SEGMENT)

    def visible(self, r, c, q_axis, kv_axis):
        """The rule inside one tile, broadcast to the given axes."""
        return allowed_in_tile(
            jnp.expand_dims(self.q_index_Rt[r], kv_axis),
            jnp.expand_dims(self.kv_index_Ms[c], q_axis),
            jnp.expand_dims(self.q_segment_Rt[r], kv_axis),
            jnp.expand_dims(self.kv_segment_Ms[c], q_axis),
            self.mask.window,
        )

    def anchor_state(self, r, q_tNH, sees_tA, anchors):
        """(m [t, N], l [t, N], acc [t, N, H]) of tile r's softmax after its row's anchors."""
        row = jax.tree.map(lambda x: x[r // (self.q_RtNH.shape[0] // self.B)][None], anchors)
        row = dataclasses.replace(row, visible_BTA=sees_tA[None])
        return [x[0] for x in anchors_lib.state(q_tNH[None], row, self.mask)]

    def matmul(self, subscripts, x, y):
        """Einsum in fp32: true fp32 products if the caller's arrays were fp32, else at the device's default."""
        return jnp.einsum(subscripts, x, y, precision=self.precision)

    def heads_first(self, x_tNH):
        """[t, N, H] -> fp32 [K, G, t, H]."""
        t, N, H = x_tNH.shape
        return x_tNH.astype(jnp.float32).reshape(t, self.K, N // self.K, H).transpose(1, 2, 0, 3)

    def heads_last(self, x_KGtH):
        """The inverse of `heads_first`, but for the dtype."""
        K, G, t, H = x_KGtH.shape
        return x_KGtH.transpose(2, 0, 1, 3).reshape(t, K * G, H)

    def scalars_first(self, x_tN):
        return self.heads_first(x_tN[..., None])[..., 0]

    def scalars_last(self, x_KGt):
        return self.heads_last(x_KGt[..., None])[..., 0]

    def both_layouts(self, x_RtNH, scale):
        """fp32 [R, K, G, t, H] and [R, K, H, G, t]."""

        def transposed(x_tNH):
            x_KGtH = self.heads_first(x_tNH) * scale
            return x_KGtH, jnp.moveaxis(x_KGtH, 3, 1)

        return jax.lax.map(transposed, x_RtNH)

    def join(self, x_Rt, length):
        """[tiles of all rows, tile, ...] -> [B, length, ...]."""
        return x_Rt.reshape(self.B, -1, *x_Rt.shape[2:])[:, :length]


def _rows(x_BT: jax.Array, tile: int, fill: int) -> jax.Array:
    """[B, T, ...] -> [tiles of all rows, tile, ...]."""
    x_BIt = pad_to_tiles(x_BT, tile, fill)
    return jax.lax.collapse(x_BIt, 0, 2)
