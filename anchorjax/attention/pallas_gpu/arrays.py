"""The arrays of one call as the kernels read them."""

import jax.numpy as jnp
from jax.experimental import pallas as pl

from anchorjax.attention import anchors as anchors_lib
from anchorjax.attention.pallas_gpu import SMALLEST
from anchorjax.attention.pallas_gpu.tile import Static
from anchorjax.attention.plan import Plan, Visits, pad_to_tiles
from anchorjax.masks import NO_SEGMENT, tile_segment_ids
from anchorjax.types import PAD_SEGMENT


class Arrays:
    """One call's arrays. q, k and v stay as they are; what is small is padded to whole tiles.

    Letters: X query tokens and Y key tokens of all rows, each row padded to tiles.

    Attributes:
      lines: int32 q_index, q_segment [X], kv_index, kv_segment [Y], for Static.hide.
    """

    def __init__(self, q_BTNH, k_BSKH, v_BSKH, plan: Plan):
        T, S = q_BTNH.shape[1], k_BSKH.shape[1]
        self.q_BTNH, self.k_BSKH, self.v_BSKH = q_BTNH, k_BSKH, v_BSKH
        self.plan, mask = plan, plan.mask
        self.lines = (
            _line(mask.q_index_BT, plan.q_tile, 0),
            _line(mask.q_segment_ids_BT, plan.q_tile, PAD_SEGMENT),
            _line(mask.kv_index_BS, plan.kv_tile, 0),
            _line(tile_segment_ids(mask), plan.kv_tile, NO_SEGMENT),
        )
        self.static = Static.of(
            q_BTNH,
            k_BSKH,
            plan,
            q_tiles=pl.cdiv(T, plan.q_tile),
            kv_tiles=pl.cdiv(S, plan.kv_tile),
            T=T,
            S=S,
            width=q_BTNH.shape[3],
        )

    def small(self, visits: Visits):
        """What every kernel reads whole: a list's entries, starts and lengths, and the lines."""
        return visits.entries_CP.reshape(-1), visits.starts_1R[0], visits.lengths_1R[0], *self.lines

    def by_head(self, x_BTN):
        """[B, T, N] -> [B, N, X], zeros for padding."""
        x_BNX = jnp.swapaxes(x_BTN, 1, 2)
        return jnp.pad(x_BNX, ((0, 0), (0, 0), (0, self.static.q_tiles * self.static.q_tile - self.static.T)))

    def anchors(self):
        """k, v [B, A, K, H] in their dtype and visible [X, A] int32; A is padded to what a matmul takes."""
        anchors = anchors_lib.find(self.k_BSKH, self.v_BSKH, self.plan.mask)
        A = max(SMALLEST, pl.next_power_of_2(self.plan.mask.num_anchors))
        pad = (0, A - self.plan.mask.num_anchors)
        k_BAKH, v_BAKH = (
            jnp.pad(x, ((0, 0), pad, (0, 0), (0, 0))).astype(self.q_BTNH.dtype)
            for x in (anchors.k_BAKH, anchors.v_BAKH)
        )
        visible_BTA = jnp.pad(anchors.visible_BTA.astype(jnp.int32), ((0, 0), (0, 0), pad))
        return k_BAKH, v_BAKH, pad_to_tiles(visible_BTA, self.plan.q_tile, 0).reshape(-1, A)


def _line(x_BT, tile, fill):
    return pad_to_tiles(x_BT, tile, fill).reshape(-1)
