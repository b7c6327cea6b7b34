"""The arrays of one call as the kernels read them."""

import jax.numpy as jnp

from anchorjax.attention import anchors
from anchorjax.attention.pallas_tpu.tile import Static
from anchorjax.attention.plan import Plan, pad_to_tiles
from anchorjax.masks import NO_SEGMENT, tile_segment_ids
from anchorjax.types import PAD_SEGMENT


class Arrays:
    """One call's arrays as the kernels read them: head-major, the rows end to end, each padded to tiles."""

    def __init__(self, q_BTNH, k_BSKH, v_BSKH, plan: Plan):
        self.B, self.T, self.S = *q_BTNH.shape[:2], k_BSKH.shape[1]
        self.plan, mask = plan, plan.mask
        self.q_NXH = self.flatten(q_BTNH, plan.q_tile)
        self.k_KYH, self.v_KYH = self.flatten(k_BSKH, plan.kv_tile), self.flatten(v_BSKH, plan.kv_tile)
        # What the mask needs of each token in one array, as every array costs a step some 20 bundles: index, segment.
        self.q_tokens_2X = jnp.concatenate(
            [self._line(mask.q_index_BT, plan.q_tile, 0), self._line(mask.q_segment_ids_BT, plan.q_tile, PAD_SEGMENT)]
        )
        self.kv_tokens_2Y = jnp.concatenate(
            [
                self._line(mask.kv_index_BS, plan.kv_tile, 0),
                self._line(tile_segment_ids(mask), plan.kv_tile, NO_SEGMENT),
            ]
        )
        q_tiles_per_row = self.q_NXH.shape[1] // plan.q_tile // self.B
        self.static = Static.of(q_BTNH, k_BSKH, plan, q_tiles_per_row=q_tiles_per_row)
        self._find_anchors(k_BSKH, v_BSKH, mask)

    def _find_anchors(self, k_BSKH, v_BSKH, mask):
        """k and v [2, K, B, A16, H] in their dtype, and which exist [B * A].

        16 rows are one bf16 register; without anchors there is one that does not exist, for the kernel to be given.
        """
        A = mask.num_anchors
        slots_BA, exists_BA = anchors.locate(mask)
        rows_B1 = jnp.arange(self.B)[:, None]
        pad = ((0, 0), (0, 0), (0, max(16, A + -A % 16) - A), (0, 0))
        self.anchors_2KBAH = jnp.stack(
            [jnp.pad(x[rows_B1, slots_BA].transpose(2, 0, 1, 3), pad) for x in (k_BSKH, v_BSKH)]
        )
        self.anchor_exists = jnp.pad(exists_BA, ((0, 0), (0, max(1, A) - A))).astype(jnp.int32).reshape(-1)

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
