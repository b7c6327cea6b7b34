"""Which weights a run trains: all, or the adapters alone."""

import jax

from anchorjax.config import LoraConfig


def of(params, lora: LoraConfig):
    """The weights with None in place of each frozen one, which optax and JAX take as nothing at all."""
    return adapters(params) if lora.rank else params


def adapters(params):
    """The adapters, with None in place of all other weights."""
    is_adapter = lambda path: "_adapter" in jax.tree_util.keystr(path)  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, x: x if is_adapter(path) else None, params)


def put_back(trained, params):
    """`params` with its trained weights replaced."""
    return jax.tree.map(lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None)
