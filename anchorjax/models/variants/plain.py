"""Softmax attention at the tokens' own positions: what models are trained with."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import reshard
from jax.typing import ArrayLike

from anchorjax.attention import dense, parallel
from anchorjax.attention.per_device import ShardedPlan
from anchorjax.masks import Mask
from anchorjax.models import logit_scale, rope
from anchorjax.models.spec import Spec
from anchorjax.sharding import BATCH, CACHE, HEADS

Cache = tuple[jax.Array, jax.Array]  # rotated keys and values of one layer [B, S, K, H], in compute_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerContext:
    """What all layers of one kind share.

    Attributes:
      mask: who sees whom, in a plan; a bare mask is attended densely.
      cos_BTh, sin_BTh: fp32 RoPE tables of the T queries, and of the keys that come with them.
      scale_BT: `logit_scale.factors`; None if logits are not scaled.
      start: int32, the first column of a cache that the T tokens take; None without a cache.
    """

    mask: Mask | ShardedPlan
    cos_BTh: jax.Array
    sin_BTh: jax.Array
    start: jax.Array | None = None
    scale_BT: jax.Array | None = None


def contexts(
    masks: Sequence[Mask], positions_BT: jax.Array, spec: Spec, start: jax.Array | None = None
) -> tuple[LayerContext, ...]:
    """One for each mask. A single column behind a cache gets no plan: no tile would be filled."""
    tiled = start is None or positions_BT.shape[1] > 1

    def one(mask: Mask) -> LayerContext:
        local = mask.window is not None
        tables = rope.tables(positions_BT, spec.max_position, spec.model.head_dim, spec.rope, local=local)
        scale_BT = logit_scale.factors(mask, positions_BT, spec.attention, has_cache=start is not None)
        return LayerContext(parallel.plan(mask, spec.attention, spec.mesh) if tiled else mask, *tables, start, scale_BT)

    return tuple(map(one, masks))


def cache(rows: int, columns: int, spec: Spec) -> Cache:
    """Zeros on the current mesh: rows along data and fsdp, heads along tensor."""
    shape = rows, columns, spec.model.num_kv_heads, spec.model.head_dim
    zeros = [jnp.zeros(shape, spec.model.compute_dtype, out_sharding=CACHE) for _ in range(2)]
    return zeros[0], zeros[1]


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    context: LayerContext,
    spec: Spec,
    cache: Cache | None = None,
    layer: ArrayLike | None = None,
    head_scale_N: jax.Array | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Attention of the T queries to the T keys, or to the cache with these keys written into it."""
    q_BTNH, k_BTKH = rotated(q_BTNH, k_BTKH, context, spec, layer, head_scale_N)
    if cache is None:
        return parallel.apply(q_BTNH, k_BTKH, v_BTKH, context.mask)[0], None
    cache = tuple(write(old, new, context.start) for old, new in zip(cache, (k_BTKH, v_BTKH), strict=True))
    arrays = [reshard(x, HEADS) for x in (q_BTNH, *cache)]
    if isinstance(context.mask, ShardedPlan):
        return parallel.apply(*arrays, context.mask)[0], cache
    on_mesh = jax.shard_map(dense.attend, in_specs=(HEADS, HEADS, HEADS, BATCH), out_specs=HEADS)
    return on_mesh(*arrays, context.mask), cache


def write(old_BSKH: jax.Array, new_BTKH: jax.Array, start: jax.Array) -> jax.Array:
    """The cache with T columns replaced, from column `start` on."""
    return jax.lax.dynamic_update_slice_in_dim(old_BSKH, reshard(new_BTKH, CACHE), start, axis=1)


def rotated(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    context: LayerContext,
    spec: Spec,
    layer: ArrayLike | None = None,
    head_scale_N: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Queries and keys at their positions, the queries times the scale of their logits."""
    config, cos_BTh, sin_BTh = spec.model, context.cos_BTh, context.sin_BTh
    # Attention divides by sqrt(H). Another scale goes into the queries' tables: no rounding of its own.
    correction = (config.head_dim / (config.query_scale or config.head_dim)) ** 0.5
    if context.scale_BT is not None:
        correction *= logit_scale.of_layer(context.scale_BT, spec.attention, layer)[:, :, None]
    if head_scale_N is not None:
        q_BTNH = logit_scale.by_head(q_BTNH, head_scale_N, spec.attention, layer)  # fp32, rounded after it is rotated
    q_BTNH = rope.rotate(q_BTNH, cos_BTh * correction, sin_BTh * correction, spec.rope.dtype).astype(k_BTKH.dtype)
    return q_BTNH, rope.rotate(k_BTKH, cos_BTh, sin_BTh, spec.rope.dtype)
