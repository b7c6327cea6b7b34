"""DeepSpeed-Ulysses: each device attends with all tokens of its rows and a part of the heads.

An all-to-all over `context` exchanges tokens for heads, from [T / C tokens, N heads] to [T tokens, N / C heads]. A
second all-to-all brings the output and the log-sum-exp back. The transposes exchange the gradients. All devices along
`context` have the same tiles, so their work is equal under any mask.

With grouped-query attention there may be fewer key heads than devices, or a number that C does not divide. Each key
head is then repeated R / K times before the all-to-all, which leaves G query heads to each copy. A device receives only
the key heads that its query heads use. The device that holds a token adds up the gradients of the copies, in the dtype
of the keys.

With `mesh.ulysses_head_chunks` above 1, one chunk of the heads is exchanged and attended at a time, and the backward
pass repeats the exchange chunk by chunk: arrays of all tokens exist for the heads of one chunk only. A chunk has a part
of the query heads of each key head, so that all chunks share the exchanged keys and values. Where these query heads are
too few, chunks are also made of key heads.

Sources: DeepSpeed-Ulysses (arXiv 2309.14509, Section 3); chunks of heads, UPipe (arXiv 2602.21196). Letters: C devices
along `context`; N and K count the heads of one device along `tensor`; R = lcm(K, C) key heads with their copies, and
G = N / R query heads of each.
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
    """Raises ConfigError if C times the number of chunks does not divide N. K may be any number: keys are repeated."""
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
    """See `parallel.apply`. A device attends with q [B, T, N / C, H] and k, v [B, S, R / C, H], or a chunk of them."""

    def attend(q_BTNH, k_BSKH, v_BSKH, local, _):
        k_BSRH, v_BSRH = _repeated(k_BSKH), _repeated(v_BSKH)
        (B, T, N, H), R = q_BTNH.shape, k_BSRH.shape[2]
        q_BTRGH = q_BTNH.reshape(B, T, R, N // R, H)
        # Chunks of the query heads of each key head need no keys of their own, so there are as many as can be.
        by_query = math.gcd(plan.mesh.ulysses_head_chunks, N // R)
        by_key = plan.mesh.ulysses_head_chunks // by_query

        def of_keys(chunk):
            q_BTRGH, *kv_BSRH = chunk
            keys = [_tokens_for_heads(x) for x in kv_BSRH]

            def of_queries(q_BTRGH):
                q_BTNH = _tokens_for_heads(jax.lax.collapse(q_BTRGH, 2, 4))
                results = attention_with_lse(q_BTNH, *keys, local, implementation=plan.config.implementation)
                out_BTNH, lse_BTN = (_heads_for_tokens(x) for x in results)
                return out_BTNH.reshape(q_BTRGH.shape), lse_BTN.reshape(q_BTRGH.shape[:-1])

            return _in_turn(of_queries, jnp.split(q_BTRGH, by_query, axis=3), axis=3)

        parts = [jnp.split(x, by_key, axis=2) for x in (q_BTRGH, k_BSRH, v_BSRH)]
        out_BTRGH, lse_BTRG = _in_turn(of_keys, list(zip(*parts, strict=True)), axis=2)
        return out_BTRGH.reshape(B, T, N, H), lse_BTRG.reshape(B, T, N)

    return per_device.apply(q_BTNH, k_BSKH, v_BSKH, plan, attend)


def _in_turn(call, chunks: list, axis: int) -> tuple[jax.Array, ...]:
    """The results of `call(chunk)`, joined along an axis; arrays that it makes exist for one chunk at a time."""
    if len(chunks) == 1:
        return call(chunks[0])
    # Without a checkpoint the arrays of all chunks would stay for the backward pass.
    once = jax.checkpoint(call, policy=jax.checkpoint_policies.save_only_these_names(gradient.NAME))
    results = []
    for chunk in chunks:
        # A chunk waits for the one before it, in the backward pass too: else both could be in memory at once.
        chunk, results = jax.lax.optimization_barrier((chunk, results))
        results.append(once(chunk))
    return tuple(jnp.concatenate(x, axis) for x in zip(*results, strict=True))


def _with_all_tokens(mask: Mask) -> Mask:
    return jax.tree.map(per_device.all_tokens, mask)


def _repeated(k_BSKH: jax.Array) -> jax.Array:
    """[B, S / C, K, H] -> [B, S / C, R, H]; the copies of a head are neighbours."""
    K, C = k_BSKH.shape[2], jax.lax.axis_size("context")
    return jnp.repeat(k_BSKH, math.lcm(K, C) // K, axis=2)


def _tokens_for_heads(x_BTNH: jax.Array) -> jax.Array:
    """[B, T / C, N, ...] -> [B, T, N / C, ...]; device c gets the c-th part of the heads."""
    return jax.lax.all_to_all(x_BTNH, "context", split_axis=2, concat_axis=1, tiled=True)


def _heads_for_tokens(x_BTNH: jax.Array) -> jax.Array:
    """The inverse of `_tokens_for_heads`."""
    return jax.lax.all_to_all(x_BTNH, "context", split_axis=1, concat_axis=2, tiled=True)
