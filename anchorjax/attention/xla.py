"""Blockwise attention in plain XLA over live tiles only: the CPU's default, and runs on every backend.

Forward: for each query tile an online softmax over its live key tiles, started from the anchor keys
(m their largest logit, l their sum, acc their weighted values), so that the anchor costs no tile.
Backward: one pass over the live tiles by key tile, five matmuls each. dk and dv of a key tile stay in the
loop's carry; dq is accumulated in place. The anchors' gradients are closed forms of the log-sum-exp.
All sums are fp32. Memory is O(T): nothing of shape [T, S] exists. Trip counts are data, so no layout of
documents is ever compiled for.

Sources: online softmax, Milakov & Gimelshein (arXiv 1805.02867); tiled forward and backward,
FlashAttention-2 (arXiv 2307.08691, Algorithms 1 and 2). Letters: I, J query and key tiles of a row; t, s
tokens of one query and one key tile.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from anchorjax.attention.plan import Plan, pad_to_tiles
from anchorjax.masks import Mask, allowed
from anchorjax.types import PAD_SEGMENT

NAME = "attention"  # of the saved output and log-sum-exp, for remat policies
_NOTHING = -1e30  # logit of "no key seen yet": finite, so that the difference of two is not NaN


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, plan: Plan) -> jax.Array:
    """Attention of one device's arrays; the contract is that of `attention.attention`."""
    return _attend(q_BTNH, k_BSKH, v_BSKH, mask, plan)


@jax.custom_vjp
def _attend(q_BTNH, k_BSKH, v_BSKH, mask, plan):
    return _forward(q_BTNH, k_BSKH, v_BSKH, mask, plan)[0]


def _forward(q_BTNH, k_BSKH, v_BSKH, mask, plan):
    tiles = _Tiles(q_BTNH, k_BSKH, v_BSKH, mask, plan)

    def query_tile(x):
        b, i, state = x
        return jax.lax.fori_loop(0, plan.kv_counts_BI[b, i], lambda n, state: key_tile(b, i, n, state), state)

    def key_tile(b, i, n, state):
        m_KGt, l_KGt, acc_KGtH = state
        j = plan.kv_tiles_BIJ[b, i, n]
        s_KGts = tiles.logits_KGts(b, i, j)
        m_new_KGt = jnp.maximum(m_KGt, jnp.max(s_KGts, -1))
        p_KGts = jnp.exp(s_KGts - m_new_KGt[..., None])
        rescale_KGt = jnp.exp(m_KGt - m_new_KGt)
        pv_KGtH = tiles.matmul("kgts,ksh->kgth", p_KGts, tiles.v_BJKsH[b, j])
        l_KGt = l_KGt * rescale_KGt + jnp.sum(p_KGts, -1)
        return m_new_KGt, l_KGt, acc_KGtH * rescale_KGt[..., None] + pv_KGtH

    start = _anchor_state(tiles)
    m, l, acc = _map_tiles(query_tile, plan.kv_counts_BI.shape, start)
    seen = l > 0
    l = jnp.where(seen, l, 1.0)
    out_BTNH = tiles.join(acc / l[..., None]).astype(q_BTNH.dtype)
    lse_BIKGt = jnp.where(seen, m + jnp.log(l), -_NOTHING)  # exp(s - lse) = 0 for queries that see nothing
    out_BTNH, lse_BIKGt = checkpoint_name(out_BTNH, NAME), checkpoint_name(lse_BIKGt, NAME)
    return out_BTNH, (q_BTNH, k_BSKH, v_BSKH, mask, plan, out_BTNH, lse_BIKGt)


def _backward(residuals, dout_BTNH):
    q_BTNH, k_BSKH, v_BSKH, mask, plan, out_BTNH, lse_BIKGt = residuals
    tiles = _Tiles(q_BTNH, k_BSKH, v_BSKH, mask, plan)
    do_BIKGtH = tiles.split(dout_BTNH)
    do_o_BTN = jnp.sum(dout_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), -1)
    delta_BIKGt = tiles.split(do_o_BTN[..., None])[..., 0]

    def key_tile(dq_BIKHGt, x):
        b, j = x

        def query_tile(n, carry):
            dq_BIKHGt, dk_KsH, dv_KsH = carry
            i = plan.q_tiles_BJI[b, j, n]
            do_KGtH = do_BIKGtH[b, i]
            # Keys in front and dq transposed: then no matmul needs a transposed copy of a tile, which
            # took a third of the time of this loop.
            p_KsGt = jnp.exp(tiles.logits_KsGt(b, i, j) - lse_BIKGt[b, i][:, None])
            dp_KsGt = tiles.matmul("ksh,kgth->ksgt", tiles.v_BJKsH[b, j], do_KGtH)
            ds_KsGt = p_KsGt * (dp_KsGt - delta_BIKGt[b, i][:, None]) * tiles.scale
            dv_KsH += tiles.matmul("ksgt,kgth->ksh", p_KsGt, do_KGtH)
            dk_KsH += tiles.matmul("ksgt,kgth->ksh", ds_KsGt, tiles.q_BIKGtH[b, i])
            dq_KHGt = tiles.matmul("khs,ksgt->khgt", k_BJKHs[b, j], ds_KsGt)
            return dq_BIKHGt.at[b, i].add(dq_KHGt), dk_KsH, dv_KsH

        zero_KsH = jnp.zeros_like(tiles.k_BJKsH[0, 0])
        start = (dq_BIKHGt, zero_KsH, zero_KsH)
        dq_BIKHGt, dk_KsH, dv_KsH = jax.lax.fori_loop(0, plan.q_counts_BJ[b, j], query_tile, start)
        return dq_BIKHGt, (dk_KsH, dv_KsH)

    B, J = plan.q_counts_BJ.shape
    k_BJKHs = tiles.k_BJKsH.swapaxes(3, 4)
    dq_BIKHGt = jnp.zeros_like(jnp.moveaxis(tiles.q_BIKGtH, 5, 3))
    dq_BIKHGt, dkv = jax.lax.scan(key_tile, dq_BIKHGt, _grid(B, J))
    dk_BSKH, dv_BSKH = (tiles.join_keys(x.reshape(B, J, *x.shape[1:])) for x in dkv)
    dq_anchor, dk_anchor, dv_anchor = _anchor_gradients(tiles, do_BIKGtH, lse_BIKGt, delta_BIKGt)
    dq_BTNH = tiles.join(jnp.moveaxis(dq_BIKHGt, 3, 5) + dq_anchor)
    rows_B1 = jnp.arange(B)[:, None]
    dk_BSKH = dk_BSKH.at[rows_B1, tiles.anchor_slots_BA].add(dk_anchor)
    dv_BSKH = dv_BSKH.at[rows_B1, tiles.anchor_slots_BA].add(dv_anchor)
    dtype = q_BTNH.dtype
    return dq_BTNH.astype(dtype), dk_BSKH.astype(dtype), dv_BSKH.astype(dtype), None, None


_attend.defvjp(_forward, _backward)


class _Tiles:
    """One call's arrays cut into tiles, head axes in front: the layout that both passes work in."""

    def __init__(self, q_BTNH, k_BSKH, v_BSKH, mask: Mask, plan: Plan):
        self.T, self.S = q_BTNH.shape[1], k_BSKH.shape[1]
        self.K, self.scale = k_BSKH.shape[2], q_BTNH.shape[-1] ** -0.5
        self.plan, self.num_anchors = plan, mask.num_anchors
        self.precision = jax.lax.Precision.HIGHEST if q_BTNH.dtype == jnp.float32 else None
        self.q_BIKGtH = self.split(q_BTNH)
        self.k_BJKsH, self.v_BJKsH = (
            pad_to_tiles(x.astype(jnp.float32), plan.kv_tile, 0).swapaxes(2, 3) for x in (k_BSKH, v_BSKH)
        )
        self.q_index_BIt = pad_to_tiles(mask.q_index_BT, plan.q_tile, 0)
        self.q_segment_BIt = pad_to_tiles(mask.q_segment_ids_BT, plan.q_tile, PAD_SEGMENT)
        self.kv_index_BJs = pad_to_tiles(mask.kv_index_BS, plan.kv_tile, 0)
        self.kv_segment_BJs = pad_to_tiles(mask.kv_segment_ids_BS, plan.kv_tile, PAD_SEGMENT)
        self._find_anchors(k_BSKH, v_BSKH, mask)

    def _find_anchors(self, k_BSKH, v_BSKH, mask):
        """Anchors are found by index, so that the keys may come in any order or without them."""
        is_anchor_BAS = mask.kv_index_BS[:, None] == jnp.arange(self.num_anchors)[:, None]
        self.anchor_slots_BA = jnp.argmax(is_anchor_BAS, -1)
        rows_B1 = jnp.arange(k_BSKH.shape[0])[:, None]
        self.anchor_k_BAKH = k_BSKH[rows_B1, self.anchor_slots_BA]
        self.anchor_v_BAKH = v_BSKH[rows_B1, self.anchor_slots_BA]
        visible_BItA = allowed(
            self.q_index_BIt[..., None],
            mask.kv_index_BS[rows_B1, self.anchor_slots_BA][:, None, None],
            self.q_segment_BIt[..., None],
            mask.kv_segment_ids_BS[rows_B1, self.anchor_slots_BA][:, None, None],
            self.num_anchors,
        )
        present_BA = jnp.any(is_anchor_BAS, -1)
        self.anchor_visible_BItA = visible_BItA & present_BA[:, None, None]

    def visible(self, b, i, j, q_axis, kv_axis):
        """The rule inside one tile, anchors left out (they are done apart), broadcast to the given axes."""
        kv_index = jnp.expand_dims(self.kv_index_BJs[b, j], q_axis)
        rule = allowed(
            jnp.expand_dims(self.q_index_BIt[b, i], kv_axis),
            kv_index,
            jnp.expand_dims(self.q_segment_BIt[b, i], kv_axis),
            jnp.expand_dims(self.kv_segment_BJs[b, j], q_axis),
            self.num_anchors,
        )
        return rule & (kv_index >= self.num_anchors)

    def logits_KGts(self, b, i, j):
        """Scaled logits of one tile, -inf where nothing may be seen."""
        s_KGts = self.matmul("kgth,ksh->kgts", self.q_BIKGtH[b, i], self.k_BJKsH[b, j]) * self.scale
        return jnp.where(self.visible(b, i, j, 0, 1), s_KGts, -jnp.inf)

    def logits_KsGt(self, b, i, j):
        """The same with keys in front."""
        s_KsGt = self.matmul("ksh,kgth->ksgt", self.k_BJKsH[b, j], self.q_BIKGtH[b, i]) * self.scale
        return jnp.where(self.visible(b, i, j, 1, 0)[:, None], s_KsGt, -jnp.inf)

    def anchor_logits(self):
        s_BIKGtA = self.matmul("bikgth,bakh->bikgta", self.q_BIKGtH, self.anchor_k_BAKH) * self.scale
        return jnp.where(self.anchor_visible_BItA[:, :, None, None], s_BIKGtA, -jnp.inf)

    def matmul(self, subscripts, x, y):
        """Einsum in fp32; with true fp32 products if the caller's arrays were fp32."""
        return jnp.einsum(subscripts, x, y, precision=self.precision)

    def split(self, x_BTNH):
        """[B, T, N, H] -> fp32 [B, I, K, G, t, H]."""
        x_BItNH = pad_to_tiles(x_BTNH.astype(jnp.float32), self.plan.q_tile, 0)
        B, I, t, N, H = x_BItNH.shape
        return x_BItNH.reshape(B, I, t, self.K, N // self.K, H).transpose(0, 1, 3, 4, 2, 5)

    def join(self, x_BIKGtH):
        B, I, K, G, t, H = x_BIKGtH.shape
        return x_BIKGtH.transpose(0, 1, 4, 2, 3, 5).reshape(B, I * t, K * G, H)[:, : self.T]

    def join_keys(self, x_BJKsH):
        B, J, K, s, H = x_BJKsH.shape
        return x_BJKsH.swapaxes(2, 3).reshape(B, J * s, K, H)[:, : self.S]


def _anchor_state(tiles: _Tiles):
    """The softmax's state after the anchor keys alone: (m, l, acc); (nothing, 0, 0) where none is seen."""
    s_BIKGtA = tiles.anchor_logits()
    m_BIKGt = jnp.max(s_BIKGtA, -1, initial=_NOTHING)
    p_BIKGtA = jnp.exp(s_BIKGtA - m_BIKGt[..., None])
    acc_BIKGtH = tiles.matmul("bikgta,bakh->bikgth", p_BIKGtA, tiles.anchor_v_BAKH.astype(jnp.float32))
    return m_BIKGt, jnp.sum(p_BIKGtA, -1), acc_BIKGtH


def _anchor_gradients(tiles: _Tiles, do_BIKGtH, lse_BIKGt, delta_BIKGt):
    """The anchors' share of dq, and their own dk, dv [B, A, K, H]: p = exp(s - lse) is all that is needed."""
    q, do = tiles.q_BIKGtH.astype(jnp.float32), do_BIKGtH.astype(jnp.float32)
    k_BAKH, v_BAKH = tiles.anchor_k_BAKH.astype(jnp.float32), tiles.anchor_v_BAKH.astype(jnp.float32)
    p_BIKGtA = jnp.exp(tiles.anchor_logits() - lse_BIKGt[..., None])
    dp_BIKGtA = tiles.matmul("bikgth,bakh->bikgta", do, v_BAKH)
    ds_BIKGtA = p_BIKGtA * (dp_BIKGtA - delta_BIKGt[..., None]) * tiles.scale
    dq_BIKGtH = tiles.matmul("bikgta,bakh->bikgth", ds_BIKGtA, k_BAKH)
    dk_BAKH = tiles.matmul("bikgta,bikgth->bakh", ds_BIKGtA, q)
    dv_BAKH = tiles.matmul("bikgta,bikgth->bakh", p_BIKGtA, do)
    return dq_BIKGtH, dk_BAKH, dv_BAKH


def _map_tiles(f, shape_BI, state):
    B, I = shape_BI
    b, i = _grid(B, I)
    flat = jax.tree.map(lambda x: x.reshape(B * I, *x.shape[2:]), state)
    return jax.tree.map(lambda x: x.reshape(B, I, *x.shape[1:]), jax.lax.map(f, (b, i, flat)))


def _grid(B: int, I: int):
    b, i = jnp.divmod(jnp.arange(B * I), I)
    return b, i
