"""Targets that see 32 keys or more count twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax.config import Config
from anchorjax.models.decoder import Decoder
from anchorjax.models.spec import Spec
from anchorjax.types import Batch


@dataclasses.dataclass(frozen=True)
class Doubled:
    def prepare(self, params: Decoder, batch: Batch, spec: Spec) -> jax.Array:
        return batch.visible_BT >= 32

    def weigh(self, nats_c: jax.Array, weights_c: jax.Array, aux_c: jax.Array) -> jax.Array:
        return weights_c * jnp.where(aux_c, 2.0, 1.0)


def make(config: Config, targets_K: np.ndarray | None) -> Doubled:
    return Doubled()
