"""What strategies of context parallelism share: each device plans its own tiles and attends by that plan.

It is not in parallel/, where every file is a strategy. Functions that take `local_mask` or `attend` call them inside
shard_map, with the arrays of one device.
"""

import dataclasses
from collections.abc import Callable

import jax

from anchorjax.attention.plan import Plan, make_plan
from anchorjax.config import AttentionConfig
from anchorjax.masks import Mask
from anchorjax.sharding import BATCH, HEADS, LSE, PER_DEVICE

# From the mask of the tokens that a device holds to the mask of the tokens that it attends with.
LocalMask = Callable[[Mask], Mask]
# (q, k, v, plan) -> (out, lse) of one device; arrays hold the tokens and heads that `sharding.HEADS` gives the device.
Attend = Callable[[jax.Array, jax.Array, jax.Array, Plan], tuple[jax.Array, jax.Array]]


def plan(mask: Mask, local_mask: LocalMask, config: AttentionConfig) -> Plan:
    """Plans the tokens that each device attends with; see `parallel.plan`."""

    def local(mask):
        made = make_plan(local_mask(mask), config.q_tile, config.kv_tile)
        return jax.tree.map(lambda x: x[None], (made.by_query, made.by_key))

    by_query, by_key = jax.shard_map(local, in_specs=(BATCH,), out_specs=PER_DEVICE)(mask)
    return Plan(mask, by_query, by_key, config.q_tile, config.kv_tile)


def apply(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: Plan, local_mask: LocalMask, attend: Attend
) -> tuple[jax.Array, jax.Array]:
    """Runs `attend` on every device with that device's plan; see `parallel.apply`."""

    def local(q_BTNH, k_BSKH, v_BSKH, mask, lists):
        by_query, by_key = jax.tree.map(lambda x: x[0], lists)
        own = dataclasses.replace(plan, mask=local_mask(mask), by_query=by_query, by_key=by_key)
        return attend(q_BTNH, k_BSKH, v_BSKH, own)

    in_specs = HEADS, HEADS, HEADS, BATCH, PER_DEVICE
    mapped = jax.shard_map(local, in_specs=in_specs, out_specs=(HEADS, LSE))
    return mapped(q_BTNH, k_BSKH, v_BSKH, plan.mask, (plan.by_query, plan.by_key))


def all_tokens(x_BT: jax.Array) -> jax.Array:
    """All-gathers over `context`: [B, T / C, ...] -> [B, T, ...] on each device."""
    return jax.lax.all_gather(x_BT, "context", axis=1, tiled=True)
