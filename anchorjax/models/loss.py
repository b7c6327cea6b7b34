"""Next-token cross-entropy in fp32, chunk by chunk along the row, its gradient made along with it.

A row of 1M tokens and a vocabulary of 128K would need 512 GB of logits; here only `chunk` tokens' logits exist at
once on a device. The gradient of a sum of weighted losses is known but for a factor as soon as the logits are, so
`weighted_nats` takes it then: logits are neither kept nor computed twice (as in Liger Kernel, arXiv 2410.10989).
An objective may make the weights from the nats themselves; that too happens chunk by chunk, before the gradient.

Each device goes over its own tokens; sums over devices are taken once, behind the last chunk, but for those over
`tensor`, along which the vocabulary is cut. Letters: n chunks of c tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal

from anchorjax import precision
from anchorjax.sharding import ACTIVATIONS, BATCH, TOKENS, UNEMBEDDING

Weigh = Callable[[jax.Array, jax.Array, Any], jax.Array]


def token_nats(
    hidden_BTD: jax.Array, unembedding_DV: jax.Array, targets_BT: jax.Array, chunk: int, soft_cap: float = 0.0
) -> jax.Array:
    """-log p(target) of every token, in nats: fp32 [B, T]. For evaluation; it has no gradient.

    Args:
      hidden_BTD: final hidden states, rows and tokens sharded as usual.
      unembedding_DV: output matrix, cut over the vocabulary.
      targets_BT: int32 target ids; those without weight may be any id of the vocabulary.
      chunk: tokens per chunk on each device; it need not divide the row.
      soft_cap: of the logits; 0 leaves them.
    """
    return _by_chunks(hidden_BTD, unembedding_DV, targets_BT, None, (), chunk, soft_cap, None, (False, False))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def weighted_nats(
    hidden_BTD: jax.Array,
    unembedding_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    aux: Any,
    chunk: int,
    soft_cap: float,
    weigh: Weigh,
) -> jax.Array:
    """sum(token_nats * weights), an fp32 scalar, differentiable in hidden states and output matrix.

    Args:
      weights_BT: fp32; what `weigh` makes the weights from, without gradient.
      aux: a pytree of arrays [B, T] for `weigh`, without gradient.
      weigh: (nats_c, weights_c, aux_c) -> weights_c, each token by itself. Its result is a constant for the gradient.
      chunk, soft_cap: as of `token_nats`.
    """
    nats_BT = token_nats(hidden_BTD, unembedding_DV, targets_BT, chunk, soft_cap)
    return jnp.sum(nats_BT * weigh(nats_BT, weights_BT, aux))


def _forward(hidden: CustomVJPPrimal, unembedding, targets, weights, aux, chunk: int, soft_cap: float, weigh):
    wanted = hidden.perturbed, unembedding.perturbed  # a frozen matrix (LoRA) costs neither work nor memory
    arrays = jax.tree.map(lambda x: x.value, (hidden, unembedding, targets, weights, aux))
    nats_BT, *gradients = _by_chunks(*arrays, chunk, soft_cap, weigh, wanted)
    weights_BT, aux = arrays[3:]
    total = jnp.sum(nats_BT * weigh(nats_BT, weights_BT, aux))
    return total, gradients


def _backward(chunk: int, soft_cap: float, weigh, residuals, factor: jax.Array):
    dhidden_BTD, dunembedding_DV = jax.tree.map(lambda x: (x * factor).astype(x.dtype), residuals)
    return dhidden_BTD, dunembedding_DV, None, None, None


weighted_nats.defvjp(_forward, _backward, symbolic_zeros=True)


def _by_chunks(hidden_BTD, unembedding_DV, targets_BT, weights_BT, aux, chunk: int, soft_cap: float, weigh, wanted):
    """Nats of every token, and the gradients of their weighted sum in hidden states and output matrix, if wanted."""
    local = functools.partial(_local, chunk=chunk, soft_cap=soft_cap, weigh=weigh, wanted=wanted)
    out_specs = BATCH, ACTIVATIONS if wanted[0] else None, UNEMBEDDING if wanted[1] else None
    in_specs = ACTIVATIONS, UNEMBEDDING, BATCH, BATCH if any(wanted) else None, BATCH
    on_mesh = jax.shard_map(local, in_specs=in_specs, out_specs=out_specs)
    return on_mesh(hidden_BTD, unembedding_DV, targets_BT, weights_BT, aux)


def _local(hidden_BTD, unembedding_DV, targets_BT, weights_BT, aux, *, chunk: int, soft_cap: float, weigh, wanted):
    B, T, D = hidden_BTD.shape
    V, dtype = unembedding_DV.shape[1], hidden_BTD.dtype
    unembedding_VD = unembedding_DV.T  # as an embedding that is tied to it rests: no copy is made of that
    ids_V = jnp.arange(V) + V * jax.lax.axis_index("tensor")
    matmul = functools.partial(precision.einsum, preferred_element_type=jnp.float32)

    def one_chunk(dunembedding_VD, x):
        hidden_cD, targets_c, weights_c, aux_c = x
        logits_cV = matmul("cd,vd->cv", hidden_cD, unembedding_VD)
        if soft_cap:
            logits_cV = soft_cap * jnp.tanh(logits_cV / soft_cap)
        top_c1 = jax.lax.pmax(jnp.max(logits_cV, -1, keepdims=True), "tensor")
        p_cV = jnp.exp(logits_cV - top_c1)
        total_c1 = jax.lax.psum(jnp.sum(p_cV, -1, keepdims=True), "tensor")
        is_target_cV = ids_V == targets_c[:, None]
        target_logit_c = jax.lax.psum(jnp.sum(jnp.where(is_target_cV, logits_cV, 0.0), -1), "tensor")
        nats_c = (jnp.log(total_c1) + top_c1)[:, 0] - target_logit_c
        if not any(wanted):
            return None, (nats_c, None)
        weights_c1 = weigh(nats_c, weights_c, aux_c)[:, None]
        dlogits_cV = p_cV * (weights_c1 / total_c1) - jnp.where(is_target_cV, weights_c1, 0.0)
        if soft_cap:
            dlogits_cV *= 1.0 - (logits_cV / soft_cap) ** 2
        # In fp32: over the vocabulary it sums to zero, which rounded to bf16 it does not, and what embeddings have in
        # common then moves (0.07 bits per byte worse on the quickstart).
        dhidden_cD = None
        if wanted[0]:
            dhidden_cD = jax.lax.psum(matmul("cv,vd->cd", dlogits_cV, unembedding_VD), "tensor").astype(dtype)
        if wanted[1]:
            dunembedding_VD += matmul("cv,cd->vd", dlogits_cV, hidden_cD)
        return dunembedding_VD, (nats_c, dhidden_cD)

    # In fp32: a bf16 sum would lose small chunks' share.
    zeros_VD = jnp.zeros((V, D), jnp.float32)
    sums_VD = jax.lax.pcast(zeros_VD, (*TOKENS, "tensor"), to="varying") if wanted[1] else None
    size = min(chunk, B * T)
    arrays = hidden_BTD, targets_BT, weights_BT, aux
    chunks = jax.tree.map(lambda x: _split(x.reshape(B * T, *x.shape[2:]), size), arrays)
    sums_VD, (nats_nc, dhidden_ncD) = jax.lax.scan(one_chunk, sums_VD, chunks)
    sums_DV = jax.lax.psum(sums_VD, TOKENS).astype(unembedding_DV.dtype).T if wanted[1] else None
    join = lambda x_nc: x_nc.reshape(-1, *x_nc.shape[2:])[: B * T].reshape(B, T, *x_nc.shape[2:])  # noqa: E731
    return join(nats_nc), join(dhidden_ncD) if wanted[0] else None, sums_DV


def _split(x_t: jax.Array, chunk: int) -> jax.Array:
    """[tokens, ...] -> [chunks, chunk, ...], zeros at the end: of weight 0."""
    x_t = jnp.pad(x_t, [(0, -x_t.shape[0] % chunk)] + [(0, 0)] * (x_t.ndim - 1))
    return x_t.reshape(-1, chunk, *x_t.shape[1:])
