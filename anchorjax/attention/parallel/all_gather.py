"""All-gather of keys and values: each device attends from its own queries to all keys of its rows.

The devices along `context` all-gather keys and values. Their gradients go back by an all-to-all, and the owner of a
token adds them up in fp32. A device holds all keys and values of its rows while it attends. How even their tiles are
depends on the order of a row's tokens (data/rows/balance.py).
Source: context parallelism in Llama 3 (arXiv 2407.21783, Section 3.3.2).
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from anchorjax.attention import attention_with_lse, per_device
from anchorjax.attention.per_device import ShardedPlan
from anchorjax.config import AttentionConfig, MeshConfig, ModelConfig
from anchorjax.masks import Mask


def check(model: ModelConfig, mesh: MeshConfig, mesh_shape: Mapping[str, int]) -> None:
    """Accepts every model and mesh."""


def tokens(seq_len: int, context: int) -> tuple[int, int]:
    """(T / C, S): the queries and the keys of one row on one device."""
    return seq_len // context, seq_len


def plan(mask: Mask, config: AttentionConfig, mesh: MeshConfig) -> ShardedPlan:
    """Plans each device's own queries [B, T / C] against all keys [B, S] of its rows."""
    return per_device.plan(mask, _with_all_keys, config, mesh)


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: ShardedPlan) -> tuple[jax.Array, jax.Array]:
    """See `parallel.apply`. Keys and values go from [B, S / C, K, H] to [B, S, K, H] on each device."""

    def attend(q_BTNH, k_BSKH, v_BSKH, local, _):
        k_BSKH, v_BSKH = _all_tokens(k_BSKH), _all_tokens(v_BSKH)
        return attention_with_lse(q_BTNH, k_BSKH, v_BSKH, local, implementation=plan.config.implementation)

    return per_device.apply(q_BTNH, k_BSKH, v_BSKH, plan, attend)


def _with_all_keys(mask: Mask) -> Mask:
    segments_BS, index_BS = (per_device.all_tokens(x) for x in (mask.kv_segment_ids_BS, mask.kv_index_BS))
    return dataclasses.replace(mask, kv_segment_ids_BS=segments_BS, kv_index_BS=index_BS)


@jax.custom_vjp
def _all_tokens(x_BSKH: jax.Array) -> jax.Array:
    """[B, S / C, K, H] -> [B, S, K, H]."""
    return per_device.all_tokens(x_BSKH)


def _all_tokens_backward(_, gradient_BSKH: jax.Array) -> tuple[jax.Array]:
    # The transpose of an all-gather is a reduce-scatter, which libtpu 0.0.42 compiles for v5p to an all-reduce and a
    # slice: twice the bytes, and sums in bfloat16.
    B, S, K, H = gradient_BSKH.shape
    C = jax.lax.axis_size("context")
    parts_BCSKH = jax.lax.all_to_all(gradient_BSKH.reshape(B, C, S // C, K, H), "context", 1, 1)
    return (jnp.sum(parts_BCSKH, 1, dtype=jnp.float32).astype(gradient_BSKH.dtype),)


_all_tokens.defvjp(lambda x_BSKH: (_all_tokens(x_BSKH), None), _all_tokens_backward)
