"""Attention logits that grow with the logarithm of what a query sees, so that attention to many keys stays sharp.

A query's logits are multiplied by t. With n = the query's position + 1, or the number of keys that it sees:

    entropy_abf        t = max(log n / log c, 1)    c: the length that the checkpoint was trained on
    scalable_softmax   t = s log n                  s: learned, one for each head and layer

and t = 1 in the layers before `attention.logit_scale_from`. t is fp32 and goes into the queries' RoPE tables, where it
is not rounded by itself: bfloat16 would make 1.1641 of the 1.1667 of position 16383. Attention's code is unaware of it.
Logits are scaled before their softcap, and queries after their norm.

Sources: Entropy-ABF (arXiv 2401.07004), whose code stores the first scaled layer and scales them all; scalable softmax
(arXiv 2501.19399), without the bias b of its variant s log n + b, which hurts beyond the trained length. Letters:
types.py.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard
from jax.typing import ArrayLike

from anchorjax.config import AttentionConfig
from anchorjax.masks import Mask, count_visible
from anchorjax.models.linear import LogitScale, broadcast
from anchorjax.sharding import BATCH, HEAD_SCALES, WHOLE_ROWS


def factors(mask: Mask, positions_BT: jax.Array, config: AttentionConfig, has_cache: bool) -> jax.Array | None:
    """t of every query, without s: fp32 [B, T], sharded like the positions; None if logits are not scaled.

    Args:
      mask: counts the keys, those of a window where it has one.
      has_cache: the keys are not the queries' own tokens.
    """
    if config.logit_scale == "none":
        return None
    count_BT = positions_BT + 1 if config.logit_scale_by == "position" else _visible(mask, has_cache)
    log_BT = jnp.log(jnp.maximum(count_BT, 1).astype(jnp.float32))  # padding sees nothing
    if config.logit_scale == "scalable_softmax":
        return log_BT
    return jnp.maximum(log_BT / np.float32(_log_length(config)), 1)


def head_scales(num_heads: int, config: AttentionConfig) -> LogitScale:
    """s at first: 1 / log c, with which the logits of a query that sees c keys are the checkpoint's."""
    return LogitScale(reshard(jnp.full(num_heads, 1 / _log_length(config), jnp.float32), HEAD_SCALES))


def by_head(q_BTNH: jax.Array, scale_N: jax.Array, config: AttentionConfig, layer: ArrayLike | None) -> jax.Array:
    """Queries times s, in fp32."""
    wide_BTNH = q_BTNH.astype(jnp.float32)
    scale_NH = of_layer(scale_N, config, layer)[:, None] * jnp.ones((1, q_BTNH.shape[-1]), jnp.float32)
    return wide_BTNH * broadcast(scale_NH, wide_BTNH)


def of_layer(scale: jax.Array, config: AttentionConfig, layer: ArrayLike | None) -> jax.Array:
    """The scale, or ones of its shape in a layer that is not scaled. Without a number, the layer is scaled."""
    return scale if layer is None else jnp.where(layer < config.logit_scale_from, jnp.ones_like(scale), scale)


def _visible(mask: Mask, has_cache: bool) -> jax.Array:
    """Keys that each query sees, int32 [B, T]. A device counts over whole rows, of which it may hold only a part."""

    def of_row(segment_ids_T, index_T):
        return count_visible(segment_ids_T, mask.num_anchors, mask.window, index_T)

    def count(mask: Mask) -> jax.Array:
        if has_cache:  # few queries: to compare them with all keys is cheaper than to sort these
            return jnp.sum(mask.materialize(), -1, dtype=jnp.int32)
        return jax.vmap(of_row)(mask.q_segment_ids_BT, mask.q_index_BT)

    rows = jax.tree.map(lambda x: reshard(x, WHOLE_ROWS), mask)
    return reshard(jax.shard_map(count, in_specs=(WHOLE_ROWS,), out_specs=WHOLE_ROWS)(rows), BATCH)


def _log_length(config: AttentionConfig) -> float:
    if config.logit_scale_length < 2:
        raise ValueError(f"attention.logit_scale_length={config.logit_scale_length} was never filled in")
    return math.log(config.logit_scale_length)
