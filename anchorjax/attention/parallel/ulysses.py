"""DeepSpeed-Ulysses: each device attends with all tokens of its rows and a part of the heads.

An all-to-all over `context` exchanges tokens for heads, from [T / C tokens, N heads] to [T tokens, N / C heads]. A
second all-to-all brings the output and the log-sum-exp back. The transposes exchange the gradients. All devices along
`context` have the same tiles, so their work is equal under any mask.

With grouped-query attention there may be fewer key heads than devices, or a number that C does not divide. Each key
head is then repeated lcm(K, C) / K times before the all-to-all, which leaves N / lcm(K, C) query heads to each copy. A
device receives only the key heads that its query heads use. The device that holds a token adds up the gradients of the
copies, in the dtype of the keys.

Source: DeepSpeed-Ulysses (arXiv 2309.14509, Section 3). Letters: C devices along `context`; N and K count the heads of
one device along `tensor`.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from anchorjax.attention import attention_with_lse, per_device
from anchorjax.attention.per_device import ShardedPlan
from anchorjax.config import AttentionConfig, MeshConfig, ModelConfig
from anchorjax.errors import ConfigError
from anchorjax.masks import Mask


def check(model: ModelConfig, mesh_shape: Mapping[str, int]) -> None:
    """Raises ConfigError if C does not divide N. K may be any number: key heads are repeated."""
    context, heads = mesh_shape["context"], model.num_heads // mesh_shape["tensor"]
    if heads % context:
        taken = f"mesh.context_strategy='ulysses' takes a divisor of model.num_heads / mesh.tensor = {heads}"
        raise ConfigError("mesh.context", context, f"{taken}, or use 'all_gather'")


def tokens(seq_len: int, context: int) -> tuple[int, int]:
    """(T, S): the queries and the keys of one row on one device."""
    return seq_len, seq_len


def plan(mask: Mask, config: AttentionConfig, mesh: MeshConfig) -> ShardedPlan:
    """Plans whole rows, queries [B, T] against keys [B, S]; all devices along `context` make the same lists."""
    return per_device.plan(mask, _with_all_tokens, config, mesh)


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: ShardedPlan) -> tuple[jax.Array, jax.Array]:
    """See `parallel.apply`. A device attends with q [B, T, N / C, H] and k, v [B, S, lcm(K, C) / C, H]."""

    def attend(q_BTNH, k_BSKH, v_BSKH, local):
        k_BSKH, v_BSKH = _repeated(k_BSKH), _repeated(v_BSKH)
        arrays = (_tokens_for_heads(x) for x in (q_BTNH, k_BSKH, v_BSKH))
        out_BTNH, lse_BTN = attention_with_lse(*arrays, local, implementation=plan.config.implementation)
        return _heads_for_tokens(out_BTNH), _heads_for_tokens(lse_BTN)

    return per_device.apply(q_BTNH, k_BSKH, v_BSKH, plan, attend)


def _with_all_tokens(mask: Mask) -> Mask:
    return jax.tree.map(per_device.all_tokens, mask)


def _repeated(k_BSKH: jax.Array) -> jax.Array:
    """[B, S / C, K, H] -> [B, S / C, lcm(K, C), H]; the copies of a head are neighbours."""
    K, C = k_BSKH.shape[2], jax.lax.axis_size("context")
    return jnp.repeat(k_BSKH, math.lcm(K, C) // K, axis=2)


def _tokens_for_heads(x_BTNH: jax.Array) -> jax.Array:
    """[B, T / C, N, ...] -> [B, T, N / C, ...]; device c gets the c-th part of the heads."""
    return jax.lax.all_to_all(x_BTNH, "context", split_axis=2, concat_axis=1, tiled=True)


def _heads_for_tokens(x_BTNH: jax.Array) -> jax.Array:
    """The inverse of `_tokens_for_heads`."""
    return jax.lax.all_to_all(x_BTNH, "context", split_axis=1, concat_axis=2, tiled=True)
