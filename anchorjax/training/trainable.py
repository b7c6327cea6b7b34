"""Which weights a run trains: all, or adapters and logit scales alone."""

import jax
from flax import nnx

from anchorjax.config import LoraConfig
from anchorjax.models.linear import LogitScale, map_by_type


def of(params, lora: LoraConfig):
    """The weights with None in place of each frozen one, which optax and JAX take as nothing at all."""
    return added(params) if lora.rank else params


def added(params):
    """What a run adds to a checkpoint, adapters and logit scales, with None in place of all other weights."""
    return map_by_type(lambda kind, x: x if issubclass(kind, nnx.LoRAParam | LogitScale) else None, params)


def put_back(trained, params):
    """`params` with its trained weights replaced."""
    return jax.tree.map(lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None)
