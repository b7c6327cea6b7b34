"""A layer that needs no other tokens, computed for a chunk of tokens at a time: tiled MLP (ALST, arXiv 2506.13996).

A feed-forward layer of width 14,336 keeps six arrays [tokens, F] in its backward pass: 3.8 GB each for 131,072 tokens
in bfloat16. In chunks it keeps those of one chunk. Each device goes over its own tokens, gathers the weights once for
all chunks, computes a chunk again in the backward pass, and adds up the chunks' weight gradients in fp32: a bf16 sum
of many small parts loses most of them. They are summed over devices once, behind the last chunk.

Letters: types.py; n chunks of c tokens, t tokens of a device.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal

from anchorjax.models import linear
from anchorjax.models.spec import Spec
from anchorjax.sharding import ACTIVATIONS, TOKENS

# (tokens [c, D], linear layers with whole weights, spec) -> [c, D], on one device: see `Linear.on_device`.
Each = Callable[[jax.Array, Any, Spec], jax.Array]


def tokens_of_device(x_BTD: jax.Array) -> int:
    """Rows times tokens that each device of the current mesh holds."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(x_BTD.shape[:2]) // math.prod(mesh.shape[axis] for axis in TOKENS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def by_chunks(each: Each, x_BTD: jax.Array, linears: Any, spec: Spec) -> jax.Array:
    """`each` of all tokens [B, T, D], `spec.model.ffn_chunk` tokens of a device at a time; differentiable.

    Args:
      linears: a pytree of `Linear` without biases, as they rest.
      spec: static; its chunk need not divide the tokens of a device.
    """
    return _forward(each, *jax.tree.map(lambda x: CustomVJPPrimal(x, False), (x_BTD, linears)), spec)[0]


def _forward(each: Each, x: CustomVJPPrimal, linears: Any, spec: Spec):
    # A frozen weight (beside adapters) costs neither work nor memory.
    trained = jax.tree.map(lambda leaf: leaf.value if leaf.perturbed else None, linears)
    frozen = jax.tree.map(lambda leaf: None if leaf.perturbed else leaf.value, linears)
    arrays = x.value, trained, frozen

    def local(x_BTD, trained, frozen):
        whole = _joined(*(linear.whole(part, spec) for part in (trained, frozen)))
        _, y_ncD = jax.lax.scan(lambda _, x_cD: (None, each(x_cD, whole, spec)), None, _split(x_BTD, spec))
        return _join(y_ncD, x_BTD)

    on_mesh = jax.shard_map(local, in_specs=_pspecs(*arrays, spec), out_specs=ACTIVATIONS)
    return on_mesh(*arrays), arrays


def _backward(each: Each, spec: Spec, residuals, dy_BTD: jax.Array):
    x_BTD, trained, frozen = residuals
    arrays = x_BTD, trained, frozen
    pspecs = _pspecs(*arrays, spec)

    def local(x_BTD, trained, frozen, dy_BTD):
        whole_trained, whole_frozen = (linear.whole(part, spec) for part in (trained, frozen))

        def add_chunk(sums, chunk):
            x_cD, dy_cD = chunk
            _, pull = jax.vjp(lambda x_cD, part: each(x_cD, _joined(part, whole_frozen), spec), x_cD, whole_trained)
            dx_cD, gradients = pull(dy_cD)
            return jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, gradients), dx_cD

        zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32, device=None), whole_trained)
        sums, dx_ncD = jax.lax.scan(add_chunk, zeros, (_split(x_BTD, spec), _split(dy_BTD, spec)))
        return _join(dx_ncD, x_BTD), linear.reduced(sums, trained, spec)

    on_mesh = jax.shard_map(local, in_specs=(*pspecs, ACTIVATIONS), out_specs=pspecs[:2])
    return on_mesh(*arrays, dy_BTD)


by_chunks.defvjp(_forward, _backward, symbolic_zeros=True)


def _pspecs(x_BTD, trained, frozen, spec: Spec):
    return ACTIVATIONS, linear.at_rest(trained, spec), linear.at_rest(frozen, spec)


def _joined(trained, frozen):
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None)


def _split(x_BTD: jax.Array, spec: Spec) -> jax.Array:
    """[n, c, D], with as few zeros at the end as n chunks need."""
    t, D = math.prod(x_BTD.shape[:2]), x_BTD.shape[2]
    n = -(-t // spec.model.ffn_chunk)
    c = -(-t // n)
    return jnp.pad(x_BTD.reshape(t, D), ((0, n * c - t), (0, 0))).reshape(n, c, D)


def _join(x_ncD: jax.Array, like_BTD: jax.Array) -> jax.Array:
    B, T, D = like_BTD.shape
    return x_ncD.reshape(-1, D)[: B * T].reshape(B, T, D)
