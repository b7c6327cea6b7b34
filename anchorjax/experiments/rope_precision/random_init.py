"""The random-init baseline of a model: the same sizes, and weights that were not trained."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, reshard
from jax.typing import ArrayLike

from anchorjax.inference.language_model import Description, LanguageModel, make_mesh
from anchorjax.models.decoder import Decoder
from anchorjax.models.linear import Bias, named_leaves, named_linears, named_params
from anchorjax.models.spec import Spec

KAIMING, LINEAR = 6.0, 1.0


def draw(description: Description, mesh: Mesh | None = None, seed: int = 0, spread: float = KAIMING) -> LanguageModel:
    """Matrices are uniform within +-sqrt(spread / inputs) of 0, the embedding by its width.

    Norms change nothing, biases and adapters are 0.

    Args:
      spread: KAIMING (arXiv 1502.01852, for rectifiers) or LINEAR, what PyTorch's `Linear` begins with.
    """
    mesh = mesh or make_mesh(description.model)
    with jax.set_mesh(mesh):
        params = _draw(jax.random.key(seed), spread, description.spec(description.context))
    return LanguageModel(description, params, mesh, None)


@functools.partial(jax.jit, static_argnames="spec")
def _draw(key: jax.Array, spread: ArrayLike, spec: Spec) -> Decoder:
    params = Decoder(key, spec)
    matrices = {"embed_VD": spec.model.d_model, "unembed_DV": spec.model.d_model}  # the size of their inputs
    for name, linear in named_linears(params).items():
        inputs, outputs = linear.letters.split("->")
        sizes = linear.weight.shape[-len(inputs + outputs) :]
        matrices[name] = math.prod(sizes[: len(inputs)])

    def drawn(name: str, x: jax.Array, key: jax.Array) -> jax.Array:
        if isinstance(kinds[name], Bias):
            return jnp.zeros_like(x)
        if name not in matrices:
            return x
        bound = (spread / matrices[name]) ** 0.5
        return reshard(jax.random.uniform(key, x.shape, x.dtype, -bound, bound), jax.typeof(x).sharding.spec)

    leaves, kinds = named_leaves(params), named_params(params)
    numbers = {name: number for number, name in enumerate(sorted(leaves))}  # a weight's own draw, in whatever order
    new = [drawn(name, x, jax.random.fold_in(key, numbers[name])) for name, x in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(params), new)
