"""What strategies of context parallelism share: each device plans its own tiles and attends by that plan.

It is not in parallel/, where every file is a strategy. Functions that take `local_mask` or `attend` call them inside
shard_map, with the arrays of one device.
"""

import dataclasses
from collections.abc import Callable

import jax

from anchorjax.attention.plan import Plan, make_plan
from anchorjax.config import AttentionConfig, MeshConfig
from anchorjax.masks import Mask
from anchorjax.sharding import BATCH, HEADS, LSE, PER_DEVICE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedPlan:
    """A mask of sharded rows, and what each device does about it.

    Attributes:
      mask: sharded like `sharding.BATCH`.
      local: the plan of each device, for the tokens that it attends with. Its leaves have one more axis in front, split
        like `sharding.PER_DEVICE`: entry d is the one that device d made.
      config: with an implementation and tiles (static).
      mesh: its context strategy made the plan, and attends by it (static).
    """

    mask: Mask
    local: Plan
    config: AttentionConfig = dataclasses.field(metadata={"static": True})
    mesh: MeshConfig = dataclasses.field(metadata={"static": True})


# From the mask of the tokens that a device holds to the mask of the tokens that it attends with.
LocalMask = Callable[[Mask], Mask]
# (q, k, v, plan) -> (out, lse) of one device; arrays hold the tokens and heads that `sharding.HEADS` gives the device.
Attend = Callable[[jax.Array, jax.Array, jax.Array, Plan], tuple[jax.Array, jax.Array]]


def plan(mask: Mask, local_mask: LocalMask, config: AttentionConfig, mesh: MeshConfig) -> ShardedPlan:
    """Plans the tokens that each device attends with; see `parallel.plan`."""

    def local(mask):
        made = make_plan(local_mask(mask), config.q_tile, config.kv_tile)
        return jax.tree.map(lambda x: x[None], made)

    return ShardedPlan(mask, jax.shard_map(local, in_specs=(BATCH,), out_specs=PER_DEVICE)(mask), config, mesh)


def apply(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: ShardedPlan, attend: Attend
) -> tuple[jax.Array, jax.Array]:
    """Runs `attend` on every device with that device's plan; see `parallel.apply`."""

    def local(q_BTNH, k_BSKH, v_BSKH, plan):
        return attend(q_BTNH, k_BSKH, v_BSKH, jax.tree.map(lambda x: x[0], plan))

    mapped = jax.shard_map(local, in_specs=(HEADS, HEADS, HEADS, PER_DEVICE), out_specs=(HEADS, LSE))
    return mapped(q_BTNH, k_BSKH, v_BSKH, plan.local)


def all_tokens(x_BT: jax.Array) -> jax.Array:
    """All-gathers over `context`: [B, T / C, ...] -> [B, T, ...] on each device."""
    return jax.lax.all_gather(x_BT, "context", axis=1, tiled=True)
