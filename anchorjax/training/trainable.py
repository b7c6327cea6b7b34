"""Which weights a run trains: all, or beside frozen ones the adapters and logit scales alone."""

import jax

from anchorjax.models.linear import ADAPTERS, LogitScale, map_by_type


def of(params):
    """The weights with None in place of each frozen one, which optax and JAX take as nothing at all.

    Where there are adapters, LoRA's or FocusLLM's, all is frozen but what is `added`.
    """
    return added(params) if jax.tree.leaves(_of_type(params, ADAPTERS)) else params


def added(params):
    """What a run adds to a checkpoint, adapters and logit scales, with None in place of all other weights."""
    return _of_type(params, ADAPTERS | LogitScale)


def _of_type(params, types):
    return map_by_type(lambda kind, x: x if issubclass(kind, types) else None, params)


def put_back(trained, params):
    """`params` with its trained weights replaced."""
    return jax.tree.map(lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None)
