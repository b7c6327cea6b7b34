"""The arrays of one call as the kernels read them."""

import jax.numpy as jnp

from anchorjax.attention.pallas_tpu.tile import NO_SEGMENT, Static
from anchorjax.attention.plan import Plan, pad_to_tiles
from anchorjax.masks import Mask
from anchorjax.types import PAD_SEGMENT


class Arrays:
    """One call's arrays as the kernels read them: heads in front, the rows end to end, each padded to tiles."""

    def __init__(self, q_BTNH, k_BSKH, v_BSKH, mask: Mask, plan: Plan):
        self.B, self.T, N, H = q_BTNH.shape
        self.S, K = k_BSKH.shape[1:3]
        self.plan = plan
        self.q_NXH = self.flatten(q_BTNH, plan.q_tile)
        self.k_KYH, self.v_KYH = self.flatten(k_BSKH, plan.kv_tile), self.flatten(v_BSKH, plan.kv_tile)
        # What the mask needs of each token in one array, as every array costs a step some 20 bundles: index, segment.
        self.q_tokens_2X = jnp.concatenate(
            [self._line(mask.q_index_BT, plan.q_tile, 0), self._line(mask.q_segment_ids_BT, plan.q_tile, PAD_SEGMENT)]
        )
        hidden_BS = (mask.kv_segment_ids_BS == PAD_SEGMENT) | (mask.kv_index_BS < mask.num_anchors)
        segment_ids_BS = jnp.where(hidden_BS, NO_SEGMENT, mask.kv_segment_ids_BS)
        self.kv_tokens_2Y = jnp.concatenate(
            [self._line(mask.kv_index_BS, plan.kv_tile, 0), self._line(segment_ids_BS, plan.kv_tile, NO_SEGMENT)]
        )
        self.static = Static(
            q_tile=plan.q_tile,
            kv_tile=plan.kv_tile,
            group=N // K,
            q_tiles_per_row=self.q_NXH.shape[1] // plan.q_tile // self.B,
            num_anchors=mask.num_anchors,
            scale=H**-0.5,
            window=mask.window,
            soft_cap=mask.soft_cap,
            exact=q_BTNH.dtype == jnp.float32,
        )
        self._find_anchors(k_BSKH, v_BSKH, mask)

    def _find_anchors(self, k_BSKH, v_BSKH, mask):
        """k and v [2, K, B, A16, H] in their dtype, and which exist [B * A]; 16 rows are one bf16 register."""
        A = max(1, mask.num_anchors)
        is_anchor_BAS = mask.kv_index_BS[:, None] == jnp.arange(A)[:, None]
        is_anchor_BAS &= mask.kv_segment_ids_BS[:, None] != PAD_SEGMENT
        rows_B1, slots_BA = jnp.arange(self.B)[:, None], jnp.argmax(is_anchor_BAS, -1)
        pad = ((0, 0), (0, 0), (0, -A % 16), (0, 0))
        self.anchors_2KBAH = jnp.stack(
            [jnp.pad(x[rows_B1, slots_BA].transpose(2, 0, 1, 3), pad) for x in (k_BSKH, v_BSKH)]
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
