"""All-gather of keys and values: each device attends from its own queries to all keys of its rows.

The devices along `context` all-gather keys and values; the transpose reduce-scatters their gradients, which libtpu
0.0.42 compiles for v5p to an all-reduce and a slice, of twice the bytes. A device holds all keys and values of its rows
while it attends. How even their tiles are depends on the order of a row's tokens (data/rows/balance.py).
Source: context parallelism in Llama 3 (arXiv 2407.21783, Section 3.3.2).
"""

import dataclasses
from collections.abc import Mapping

import jax

from anchorjax.attention import attention_with_lse, per_device
from anchorjax.attention.per_device import ShardedPlan
from anchorjax.config import AttentionConfig, MeshConfig, ModelConfig
from anchorjax.masks import Mask


def check(model: ModelConfig, mesh_shape: Mapping[str, int]) -> None:
    """Accepts every model and mesh."""


def tokens(seq_len: int, context: int) -> tuple[int, int]:
    """(T / C, S): the queries and the keys of one row on one device."""
    return seq_len // context, seq_len


def plan(mask: Mask, config: AttentionConfig, mesh: MeshConfig) -> ShardedPlan:
    """Plans each device's own queries [B, T / C] against all keys [B, S] of its rows."""
    return per_device.plan(mask, _with_all_keys, config, mesh)


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: ShardedPlan) -> tuple[jax.Array, jax.Array]:
    """See `parallel.apply`. Keys and values go from [B, S / C, K, H] to [B, S, K, H] on each device."""

    def attend(q_BTNH, k_BSKH, v_BSKH, local):
        k_BSKH, v_BSKH = per_device.all_tokens(k_BSKH), per_device.all_tokens(v_BSKH)
        return attention_with_lse(q_BTNH, k_BSKH, v_BSKH, local, implementation=plan.config.implementation)

    return per_device.apply(q_BTNH, k_BSKH, v_BSKH, plan, attend)


def _with_all_keys(mask: Mask) -> Mask:
    segments_BS, index_BS = (per_device.all_tokens(x) for x in (mask.kv_segment_ids_BS, mask.kv_index_BS))
    return dataclasses.replace(mask, kv_segment_ids_BS=segments_BS, kv_index_BS=index_BS)
