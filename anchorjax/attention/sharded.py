"""Attention on the mesh: every device attends from its own queries to all keys of its rows.

Rows are split over `data` and `fsdp`, heads over `tensor`, queries over `context`; keys and values are
gathered over `context` (their gradients are reduce-scattered back by the transpose). The plan is built by
each device for its own queries.
"""

import dataclasses
import functools

import jax

from anchorjax.attention import attention
from anchorjax.attention.plan import Plan, make_plan
from anchorjax.masks import Mask
from anchorjax.sharding import BATCH, HEADS


def plan(mask: Mask, q_tile: int, kv_tile: int) -> Plan:
    """The plan of each device's queries.

    Its leaves, [chunks, entries], [chunks, 1] and [1, tiles] on each device, are joined along both axes, as if they
    were [B, T]: rows of the mesh one below the other, context shards side by side.
    """

    def local(mask):
        return make_plan(_gather_keys(mask), q_tile, kv_tile)

    return jax.shard_map(local, in_specs=(BATCH,), out_specs=BATCH)(mask)


def apply(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    plan: Plan,
    implementation: str | None,
) -> jax.Array:
    """`attention.attention` over sharded rows; all arrays keep their sharding."""

    @functools.partial(jax.shard_map, in_specs=(HEADS, HEADS, HEADS, BATCH, BATCH), out_specs=HEADS)
    def local(q_BTNH, k_BTKH, v_BTKH, mask, plan):
        k_BSKH, v_BSKH = (jax.lax.all_gather(x, "context", axis=1, tiled=True) for x in (k_BTKH, v_BTKH))
        mask = _gather_keys(mask)
        return attention(q_BTNH, k_BSKH, v_BSKH, mask, plan=plan, implementation=implementation)

    return local(q_BTNH, k_BTKH, v_BTKH, mask, plan)


def _gather_keys(mask: Mask) -> Mask:
    segments_BS, index_BS = (
        jax.lax.all_gather(x, "context", axis=1, tiled=True) for x in (mask.kv_segment_ids_BS, mask.kv_index_BS)
    )
    return dataclasses.replace(mask, kv_segment_ids_BS=segments_BS, kv_index_BS=index_BS)
