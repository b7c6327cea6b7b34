"""A model's twin: the same sizes, and weights that nothing was learnt by."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, reshard

from anchorjax.evaluation.language_model import Description, LanguageModel, make_mesh
from anchorjax.models.decoder import Decoder
from anchorjax.models.layers import named_leaves


def draw(description: Description, mesh: Mesh | None = None, seed: int = 0) -> LanguageModel:
    """Matrices are Kaiming uniform (arXiv 1502.01852): within +-sqrt(6 / inputs) of 0, the embedding by its width.

    Norms change nothing, biases and adapters are 0.
    """
    mesh, shape = mesh or make_mesh(description.model), description.shape(description.context)

    @jax.jit
    def make() -> Decoder:
        key = jax.random.key(seed)
        params = Decoder(key, shape)
        names, structure = named_leaves(params), jax.tree.structure(params)
        drawn = [_drawn(name, x, jax.random.fold_in(key, i)) for i, (name, x) in enumerate(names.items())]
        return jax.tree.unflatten(structure, drawn)

    with jax.set_mesh(mesh):
        return LanguageModel(description, make(), mesh, None)


def _drawn(name: str, x: jax.Array, key: jax.Array) -> jax.Array:
    kind, _, axes = name.rpartition("_")
    if "adapter" in name or "norm" in kind:
        return x
    if "bias" in kind:
        return jnp.zeros_like(x)
    outputs = {"DNH": 2, "DKH": 2}.get(axes, 1)
    sizes = x.shape[x.ndim - len(axes) :]
    inputs = sizes[-1] if kind == "embed" else math.prod(sizes[: len(sizes) - outputs])
    bound = (6 / inputs) ** 0.5
    return reshard(jax.random.uniform(key, x.shape, x.dtype, -bound, bound), jax.typeof(x).sharding.spec)
