"""What a step changes: step count, weights, optimizer moments and the run's random key."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from anchorjax.models.decoder import Decoder
from anchorjax.models.spec import Spec
from anchorjax.training import trainable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` counts finished optimizer steps (int32); `key` never changes, steps fold their number into it."""

    step: jax.Array
    params: Decoder
    opt_state: optax.OptState
    key: jax.Array


def init_state(seed: int, spec: Spec, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state, sharded like its weights. Call it under jit (or eval_shape) inside `jax.set_mesh`."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params = Decoder(init_key, spec)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trainable.of(params)), step_key)
