"""A model's twin: the same sizes, and weights that nothing was learnt by."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, reshard
from jax.typing import ArrayLike

from anchorjax.inference.language_model import Description, LanguageModel, make_mesh
from anchorjax.models.decoder import Decoder
from anchorjax.models.layers import named_leaves
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
    leaves = enumerate(named_leaves(params).items())
    drawn = [_drawn(name, x, jax.random.fold_in(key, number), spread) for number, (name, x) in leaves]
    return jax.tree.unflatten(jax.tree.structure(params), drawn)


def _drawn(name: str, x: jax.Array, key: jax.Array, spread: ArrayLike) -> jax.Array:
    kind, _, axes = name.rpartition("_")
    if "adapter" in name or "norm" in kind:
        return x
    if "bias" in kind:
        return jnp.zeros_like(x)
    outputs = {"DNH": 2, "DKH": 2}.get(axes, 1)
    sizes = x.shape[x.ndim - len(axes) :]
    inputs = sizes[-1] if kind == "embed" else math.prod(sizes[: len(sizes) - outputs])
    bound = (spread / inputs) ** 0.5
    return reshard(jax.random.uniform(key, x.shape, x.dtype, -bound, bound), jax.typeof(x).sharding.spec)
