"""Next-token cross-entropy in fp32, chunk by chunk along the row, its gradient made along with it.

A row of 1M tokens and a vocabulary of 128K would need 512 GB of logits; here only `chunk` tokens' logits exist at
once on a device. The gradient of a sum of weighted losses is known but for a factor as soon as the logits are, so
`weighted_nats` takes it then: logits are neither kept nor computed twice (as in Liger Kernel, arXiv 2410.10989).
An objective may make the weights from the nats themselves; that too happens chunk by chunk, before the gradient.

The vocabulary is cut over the S devices along `fsdp` and `tensor`, each of which holds a part of the output matrix and
of its gradient. The output matrix rests cut along D; one all-to-all makes it [V / S, D] on each device, and another one
brings its gradient back. In each chunk the devices along `fsdp` all-gather their hidden states, compute the logits of
their words for all of these tokens, and reduce-scatter the gradient. Sums over other devices are taken once, behind the
last chunk. Letters: n chunks of c tokens of each of F devices along fsdp.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal

from anchorjax import precision
from anchorjax.sharding import ACTIVATIONS, BATCH, TOKENS, VOCABULARY, axes_of

Weigh = Callable[[jax.Array, jax.Array, Any], jax.Array]


def token_nats(
    hidden_BTD: jax.Array, unembedding_DV: jax.Array, targets_BT: jax.Array, chunk: int, soft_cap: float = 0.0
) -> jax.Array:
    """-log p(target) of every token, in nats: fp32 [B, T]. For evaluation; it has no gradient.

    Args:
      hidden_BTD: final hidden states, rows and tokens sharded as usual.
      unembedding_DV: output matrix, cut along D as it rests.
      targets_BT: int32 target ids; those without weight may be any id of the vocabulary.
      chunk: tokens per chunk on each device; it need not divide the row. A device holds the fp32 logits of its V / S
        words for F * chunk tokens: chunk * V / tensor numbers.
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
    pspec = jax.typeof(unembedding_DV).sharding.spec  # of UNEMBEDDING, or along `context` too
    also = tuple(name for name in axes_of(pspec[0]) if name not in VOCABULARY)
    local = functools.partial(_local, also=also, chunk=chunk, soft_cap=soft_cap, weigh=weigh, wanted=wanted)
    out_specs = BATCH, ACTIVATIONS if wanted[0] else None, pspec if wanted[1] else None
    in_specs = ACTIVATIONS, pspec, BATCH, BATCH if any(wanted) else None, BATCH
    on_mesh = jax.shard_map(local, in_specs=in_specs, out_specs=out_specs)
    return on_mesh(hidden_BTD, unembedding_DV, targets_BT, weights_BT, aux)


def _local(
    hidden_BTD, unembedding_dV, targets_BT, weights_BT, aux, *, also, chunk: int, soft_cap: float, weigh, wanted
):
    """`_by_chunks` of one device's arrays; `also`: axes by which the output matrix is cut, beside VOCABULARY."""
    B, T = targets_BT.shape
    V, dtype = unembedding_dV.shape[1], hidden_BTD.dtype
    unembedding_Vd = unembedding_dV.T  # as an embedding that is tied to it rests: no copy is made of that
    for axis in also:
        unembedding_Vd = jax.lax.all_gather(unembedding_Vd, axis, axis=1, tiled=True)
    unembedding_VD = _cut_words(unembedding_Vd)
    ids_V = jnp.arange(len(unembedding_VD)) + len(unembedding_VD) * jax.lax.axis_index(VOCABULARY)
    matmul = functools.partial(precision.einsum, preferred_element_type=jnp.float32)

    def one_chunk(dunembedding_VD, x):
        hidden_cD, targets_c, weights_c, aux_c = x
        hidden_cD = _gathered(hidden_cD)
        logits_cV = matmul("cd,vd->cv", hidden_cD, unembedding_VD)
        if soft_cap:
            logits_cV = soft_cap * jnp.tanh(logits_cV / soft_cap)
        words_cV = logits_cV if V % jax.lax.axis_size(VOCABULARY) == 0 else jnp.where(ids_V < V, logits_cV, -jnp.inf)
        top_c1 = jax.lax.pmax(jnp.max(words_cV, -1, keepdims=True), VOCABULARY)
        p_cV = jnp.exp(words_cV - top_c1)
        total_c1 = jax.lax.psum(jnp.sum(p_cV, -1, keepdims=True), VOCABULARY)
        is_target_cV = ids_V == targets_c[:, None]
        target_logit_c = jax.lax.psum(jnp.sum(jnp.where(is_target_cV, logits_cV, 0.0), -1), VOCABULARY)
        nats_c = (jnp.log(total_c1) + top_c1)[:, 0] - target_logit_c
        if not any(wanted):
            return None, (nats_c, None)
        weights_c1 = weigh(nats_c, weights_c, aux_c)[:, None]
        dlogits_cV = p_cV * (weights_c1 / total_c1) - jnp.where(is_target_cV, weights_c1, 0.0)
        if soft_cap:
            dlogits_cV *= 1.0 - (logits_cV / soft_cap) ** 2
        # In fp32: over the vocabulary it sums to zero, which rounded to bf16 it does not, and what embeddings have in
        # common then moves (0.07 bits per byte worse on the quickstart). Its sum over devices is in fp32 for the same
        # reason: the sum over one device's words alone is not zero.
        dhidden_cD = None
        if wanted[0]:
            dhidden_cD = precision.rounded(_summed(matmul("cv,vd->cd", dlogits_cV, unembedding_VD)), dtype)
        if wanted[1]:
            dunembedding_VD += matmul("cv,cd->vd", dlogits_cV, hidden_cD)
        return dunembedding_VD, (nats_c, dhidden_cD)

    # In fp32: a bf16 sum would lose small chunks' share.
    zeros_VD = jnp.zeros(unembedding_VD.shape, jnp.float32)
    sums_VD = jax.lax.pcast(zeros_VD, (*TOKENS, "tensor"), to="varying") if wanted[1] else None
    size = min(chunk, B * T)
    arrays = hidden_BTD, targets_BT, weights_BT, aux
    hidden_ncD, *others = jax.tree.map(lambda x: _split(x.reshape(B * T, *x.shape[2:]), size), arrays)
    chunks = hidden_ncD, *jax.tree.map(lambda x_nc: _gathered(x_nc, 1), others)
    sums_VD, (nats_nc, dhidden_ncD) = jax.lax.scan(one_chunk, sums_VD, chunks)
    if jax.lax.axis_size("fsdp") > 1:
        nats_nc = jax.lax.dynamic_slice_in_dim(nats_nc, size * jax.lax.axis_index("fsdp"), size, 1)
    sums_dV = None
    if wanted[1]:
        sums_VD = precision.rounded(_over_devices(sums_VD, also), unembedding_dV.dtype)
        sums_dV = _cut_columns(sums_VD, V).T
    join = lambda x_nc: x_nc.reshape(-1, *x_nc.shape[2:])[: B * T].reshape(B, T, *x_nc.shape[2:])  # noqa: E731
    return join(nats_nc), join(dhidden_ncD) if wanted[0] else None, sums_dV


def _split(x_t: jax.Array, chunk: int) -> jax.Array:
    """[tokens, ...] -> [chunks, chunk, ...], zeros at the end: of weight 0."""
    x_t = jnp.pad(x_t, [(0, -x_t.shape[0] % chunk)] + [(0, 0)] * (x_t.ndim - 1))
    return x_t.reshape(-1, chunk, *x_t.shape[1:])


def _gathered(x_c: jax.Array, axis: int = 0) -> jax.Array:
    """The tokens of all devices along fsdp: c becomes F * c."""
    return x_c if jax.lax.axis_size("fsdp") == 1 else jax.lax.all_gather(x_c, "fsdp", axis=axis, tiled=True)


def _summed(x_cD: jax.Array) -> jax.Array:
    """The sum over all words of what each device has of its own, for the device's tokens: F * c becomes c."""
    x_cD = jax.lax.psum(x_cD, "tensor")
    return x_cD if jax.lax.axis_size("fsdp") == 1 else jax.lax.psum_scatter(x_cD, "fsdp", tiled=True)


def _over_devices(x_VD: jax.Array, also: tuple[str, ...]) -> jax.Array:
    """The sum over the devices with other tokens; those along `also` keep the columns that rest there."""
    x_VD = jax.lax.psum(x_VD, tuple(name for name in ("data", "context") if name not in also))
    for axis in also:
        x_VSCd = x_VD.reshape(len(x_VD), jax.lax.axis_size(VOCABULARY), jax.lax.axis_size(axis), -1)
        x_VD = jax.lax.psum_scatter(x_VSCd, axis, scatter_dimension=2).reshape(len(x_VD), -1)
    return x_VD


def _cut_words(x_Vd: jax.Array) -> jax.Array:
    """[V, D / S] -> [V / S, D]: columns for words; zeros at the end where S does not divide V."""
    shards = jax.lax.axis_size(VOCABULARY)
    if shards == 1:
        return x_Vd
    x_Vd = jnp.pad(x_Vd, ((0, -len(x_Vd) % shards), (0, 0)))
    return jax.lax.all_to_all(x_Vd, VOCABULARY, 0, 1, tiled=True)


def _cut_columns(x_VD: jax.Array, num_words: int) -> jax.Array:
    """The inverse of `_cut_words`."""
    if jax.lax.axis_size(VOCABULARY) == 1:
        return x_VD
    return jax.lax.all_to_all(x_VD, VOCABULARY, 1, 0, tiled=True)[:num_words]
