"""DeepSpeed-Ulysses: each device attends with all tokens of its rows and a part of the heads.

An all-to-all over `context` exchanges tokens for heads, from [T / C tokens, N heads] to [T tokens, N / C heads]. A
second all-to-all brings the output and the log-sum-exp back. The transposes exchange the gradients. All devices along
`context` have the same tiles, so their work is equal under any mask.

With grouped-query attention there may be fewer key heads than devices, or a number that C does not divide. Each key
head is then repeated lcm(K, C) / K times before the all-to-all, which leaves N / lcm(K, C) query heads to each copy. A
device receives only the key heads that its query heads use. The device that holds a token adds up the gradients of the
copies, in the dtype of the keys.

With `mesh.ulysses_head_chunks` above 1, one chunk of the heads is exchanged and attended at a time, and the backward
pass repeats the exchange chunk by chunk: arrays of all tokens exist for the heads of one chunk only. A chunk with fewer
key heads than devices repeats them, so more chunks may send more.

Sources: DeepSpeed-Ulysses (arXiv 2309.14509, Section 3); chunks of heads, UPipe (arXiv 2602.21196). Letters: C devices
along `context`; N and K count the heads of one device along `tensor`; X chunks of heads.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from anchorjax.attention import attention_with_lse, gradient, per_device
from anchorjax.attention.per_device import ShardedPlan
from anchorjax.config import AttentionConfig, MeshConfig, ModelConfig
from anchorjax.errors import ConfigError
from anchorjax.masks import Mask


def check(model: ModelConfig, mesh: MeshConfig, mesh_shape: Mapping[str, int]) -> None:
    """Raises ConfigError if C X does not divide N. K may be any number: key heads are repeated."""
    context, heads, chunks = mesh_shape["context"], model.num_heads // mesh_shape["tensor"], mesh.ulysses_head_chunks
    if heads % context:
        taken = f"mesh.context_strategy='ulysses' takes a divisor of model.num_heads / mesh.tensor = {heads}"
        raise ConfigError("mesh.context", context, f"{taken}, or use 'all_gather' or 'ring'")
    if heads // context % chunks:
        taken = f"it must divide model.num_heads / mesh.tensor / mesh.context = {heads // context}"
        raise ConfigError("mesh.ulysses_head_chunks", chunks, taken)


def tokens(seq_len: int, context: int) -> tuple[int, int]:
    """(T, S): the queries and the keys of one row on one device."""
    return seq_len, seq_len


def plan(mask: Mask, config: AttentionConfig, mesh: MeshConfig) -> ShardedPlan:
    """Plans whole rows, queries [B, T] against keys [B, S]; all devices along `context` make the same lists."""
    return per_device.plan(mask, _with_all_tokens, config, mesh)


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: ShardedPlan) -> tuple[jax.Array, jax.Array]:
    """See `parallel.apply`. A device attends with q [B, T, N / C, H] and k, v [B, S, lcm(K, C) / C, H] of a chunk."""

    def attend(q_BTNH, k_BSKH, v_BSKH, local, _):
        C = jax.lax.axis_size("context")
        k_BSKH, v_BSKH = _repeated(k_BSKH, C), _repeated(v_BSKH, C)
        arrays = (_tokens_for_heads(x) for x in (q_BTNH, k_BSKH, v_BSKH))
        out_BTNH, lse_BTN = attention_with_lse(*arrays, local, implementation=plan.config.implementation)
        return _heads_for_tokens(out_BTNH), _heads_for_tokens(lse_BTN)

    def attend_in_chunks(q_BTNH, k_BSKH, v_BSKH, local, shared):
        X = plan.mesh.ulysses_head_chunks
        if X == 1:
            return attend(q_BTNH, k_BSKH, v_BSKH, local, shared)
        # Without a checkpoint the exchanged arrays of all chunks would stay for the backward pass.
        saved = jax.checkpoint_policies.save_only_these_names(gradient.NAME)
        one = jax.checkpoint(lambda chunk: attend(*chunk, local, shared), policy=saved)
        results, parts = [], [jnp.split(x, X, axis=2) for x in (q_BTNH, _repeated(k_BSKH, X), _repeated(v_BSKH, X))]
        for chunk in zip(*parts, strict=True):
            # A chunk waits for the one before it, in the backward pass too: else both could be in memory at once.
            chunk, results = jax.lax.optimization_barrier((chunk, results))
            results.append(one(chunk))
        return tuple(jnp.concatenate(x, axis=2) for x in zip(*results, strict=True))

    return per_device.apply(q_BTNH, k_BSKH, v_BSKH, plan, attend_in_chunks)


def _with_all_tokens(mask: Mask) -> Mask:
    return jax.tree.map(per_device.all_tokens, mask)


def _repeated(k_BSKH: jax.Array, parts: int) -> jax.Array:
    """[B, S / C, K, H] -> [B, S / C, lcm(K, parts), H]; the copies of a head are neighbours."""
    K = k_BSKH.shape[2]
    return jnp.repeat(k_BSKH, math.lcm(K, parts) // K, axis=2)


def _tokens_for_heads(x_BTNH: jax.Array) -> jax.Array:
    """[B, T / C, N, ...] -> [B, T, N / C, ...]; device c gets the c-th part of the heads."""
    return jax.lax.all_to_all(x_BTNH, "context", split_axis=2, concat_axis=1, tiled=True)


def _heads_for_tokens(x_BTNH: jax.Array) -> jax.Array:
    """The inverse of `_tokens_for_heads`."""
    return jax.lax.all_to_all(x_BTNH, "context", split_axis=1, concat_axis=2, tiled=True)
