"""Each device attends with all tokens of its rows and keeps the outputs of its own."""

from collections.abc import Mapping

import jax

from anchorjax.attention import attention_with_lse, per_device
from anchorjax.attention.per_device import ShardedPlan
from anchorjax.config import AttentionConfig, MeshConfig, ModelConfig
from anchorjax.masks import Mask


def check(model: ModelConfig, mesh: MeshConfig, mesh_shape: Mapping[str, int]) -> None:
    """Accepts every model and mesh."""


def tokens(seq_len: int, context: int) -> tuple[int, int]:
    return seq_len, seq_len


def plan(mask: Mask, config: AttentionConfig, mesh: MeshConfig) -> ShardedPlan:
    return per_device.plan(mask, _whole, config, mesh)


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: ShardedPlan) -> tuple[jax.Array, jax.Array]:
    def attend(q_BTNH, k_BSKH, v_BSKH, local, _):
        arrays = (per_device.all_tokens(x) for x in (q_BTNH, k_BSKH, v_BSKH))
        out_BTNH, lse_BTN = attention_with_lse(*arrays, local, implementation=plan.config.implementation)
        return _own(out_BTNH), _own(lse_BTN)

    return per_device.apply(q_BTNH, k_BSKH, v_BSKH, plan, attend)


def _whole(mask: Mask) -> Mask:
    return jax.tree.map(per_device.all_tokens, mask)


def _own(x_BT: jax.Array) -> jax.Array:
    T = x_BT.shape[1] // jax.lax.axis_size("context")
    return jax.lax.dynamic_slice_in_dim(x_BT, jax.lax.axis_index("context") * T, T, axis=1)
