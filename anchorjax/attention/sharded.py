"""Attention on the mesh: every device attends from its own queries to all keys of its rows.

Rows are split over `data` and `fsdp`, heads over `tensor`, queries over `context`; keys and values are
gathered over `context` (their gradients are reduce-scattered back by the transpose). The plan is built by
each device for its own queries.
"""

import dataclasses
import functools

import jax

from anchorjax.attention import attention_with_lse
from anchorjax.attention.plan import Plan, make_plan
from anchorjax.config import AttentionConfig
from anchorjax.masks import Mask
from anchorjax.sharding import BATCH, HEADS, LSE, PER_DEVICE


def plan(mask: Mask, config: AttentionConfig) -> Plan:
    """The plan of each device's queries.

    Returns:
      A plan whose mask is `mask` and lies as it does. The leaves of its lists have an axis in front, along which lie
      the lists of the devices, as each of them made its own.
    """

    def local(mask):
        made = make_plan(_gather_keys(mask), config.q_tile, config.kv_tile)
        return jax.tree.map(lambda x: x[None], (made.by_query, made.by_key))

    lists = jax.shard_map(local, in_specs=(BATCH,), out_specs=PER_DEVICE)(mask)
    return Plan(mask, *lists, config.q_tile, config.kv_tile)


def apply(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, plan: Plan, config: AttentionConfig
) -> tuple[jax.Array, jax.Array]:
    """`attention.attention_with_lse` over sharded rows; all arrays keep their sharding."""

    @functools.partial(jax.shard_map, in_specs=(HEADS, HEADS, HEADS, BATCH, PER_DEVICE), out_specs=(HEADS, LSE))
    def local(q_BTNH, k_BTKH, v_BTKH, mask, lists):
        k_BSKH, v_BSKH = (jax.lax.all_gather(x, "context", axis=1, tiled=True) for x in (k_BTKH, v_BTKH))
        by_query, by_key = jax.tree.map(lambda x: x[0], lists)
        own = dataclasses.replace(plan, mask=_gather_keys(mask), by_query=by_query, by_key=by_key)
        return attention_with_lse(q_BTNH, k_BSKH, v_BSKH, own, implementation=config.implementation)

    return local(q_BTNH, k_BTKH, v_BTKH, plan.mask, (plan.by_query, plan.by_key))


def _gather_keys(mask: Mask) -> Mask:
    segments_BS, index_BS = (
        jax.lax.all_gather(x, "context", axis=1, tiled=True) for x in (mask.kv_segment_ids_BS, mask.kv_index_BS)
    )
    return dataclasses.replace(mask, kv_segment_ids_BS=segments_BS, kv_index_BS=index_BS)
