"""What strategies of context parallelism share: each device plans its own tiles and attends by that plan.

It is not in parallel/, where every file is a strategy. Functions that take `local_mask` or `attend` call them inside
shard_map, with the arrays of one device.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from anchorjax.attention.plan import make_plan
from anchorjax.config import AttentionConfig, MeshConfig
from anchorjax.masks import Mask
from anchorjax.sharding import BATCH, HEADS, LSE, PER_DEVICE, REPLICATED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedPlan:
    """A mask of sharded rows, and what each device does about it.

    Attributes:
      mask: sharded like `sharding.BATCH`.
      local: what each device made: a Plan for the tokens that it attends with, or what else the strategy needs. Its
        leaves have one more axis in front, split like `sharding.PER_DEVICE`: entry d is that of device d.
      shared: what the strategy makes that is the same on all devices; None without.
      config: with an implementation and tiles (static).
      mesh: its context strategy made the plan, and attends by it (static).
    """

    mask: Mask
    local: Any
    shared: Any
    config: AttentionConfig = dataclasses.field(metadata={"static": True})
    mesh: MeshConfig = dataclasses.field(metadata={"static": True})


# From the mask of the tokens that a device holds to the mask of the tokens that it attends with.
LocalMask = Callable[[Mask], Mask]
# (q, k, v, local, shared) -> (out, lse) of one device, whose arrays have its tokens and heads of `sharding.HEADS`.
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any, Any], tuple[jax.Array, jax.Array]]


def plan(mask: Mask, local_mask: LocalMask, config: AttentionConfig, mesh: MeshConfig) -> ShardedPlan:
    """Plans the tokens that each device attends with; see `parallel.plan`."""
    return make(mask, lambda mask: (make_plan(local_mask(mask), config.q_tile, config.kv_tile), None), config, mesh)


def make(
    mask: Mask, make_local: Callable[[Mask], tuple[Any, Any]], config: AttentionConfig, mesh: MeshConfig
) -> ShardedPlan:
    """Calls `make_local` on every device, for `local` and `shared` of a ShardedPlan."""

    def one(mask):
        local, shared = make_local(mask)
        return jax.tree.map(lambda x: x[None], local), shared

    local, shared = jax.shard_map(one, in_specs=(BATCH,), out_specs=(PER_DEVICE, REPLICATED))(mask)
    return ShardedPlan(mask, local, shared, config, mesh)


def apply(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: ShardedPlan, attend: Attend
) -> tuple[jax.Array, jax.Array]:
    """Runs `attend` on every device with that device's plan; see `parallel.apply`."""

    def one(q_BTNH, k_BSKH, v_BSKH, local, shared):
        return attend(q_BTNH, k_BSKH, v_BSKH, jax.tree.map(lambda x: x[0], local), shared)

    in_specs = HEADS, HEADS, HEADS, PER_DEVICE, REPLICATED
    mapped = jax.shard_map(one, in_specs=in_specs, out_specs=(HEADS, LSE))
    return mapped(q_BTNH, k_BSKH, v_BSKH, plan.local, plan.shared)


def all_tokens(x_BT: jax.Array) -> jax.Array:
    """All-gathers over `context`: [B, T / C, ...] -> [B, T, ...] on each device."""
    return jax.lax.all_gather(x_BT, "context", axis=1, tiled=True)
