"""What a run minimizes: the cross-entropy of its targets, each with a weight. `train.objective` names a file here.

    loss = sum_t stop_gradient(weight_t) * nats_t / number of targets of the global batch

`prepare` makes what the weights need, before the forward pass and without gradient: arrays [B, T], cut like the tokens.
`weigh` makes the weights where the nats exist, chunk by chunk (models/loss.py). It acts on each token by itself, as a
chunk is any set of tokens, and its result counts as a constant: no gradient flows through it. So a weight may depend on
the token's own nats, as in LongCE (arXiv 2410.23771). The number of targets is a field of the batch and not the sum of
the weights; micro-batches and devices therefore add up to the same loss and gradient.

Each file has a function `make(config, targets_K)`, which returns its objective; see `make` here for the arguments.
"""

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from anchorjax import types
from anchorjax.config import Config
from anchorjax.models.decoder import Decoder
from anchorjax.models.spec import Spec
from anchorjax.types import Batch


class Objective(Protocol):
    """Hashable, as it is part of the compiled step."""

    def prepare(self, params: Decoder, batch: Batch, spec: Spec) -> Any:
        """A pytree of arrays [B, T] for one micro-batch. It is called outside of the gradient."""

    def weigh(self, nats_c: jax.Array, weights_c: jax.Array, aux_c: Any) -> jax.Array:
        """The weights of some tokens.

        Args:
          nats_c: fp32 -log p(target).
          weights_c: fp32, 1 / number of targets where there is a target, else 0.
          aux_c: the same tokens of what `prepare` made.
        """


OBJECTIVES: dict[str, Callable[[Config, np.ndarray | None], Objective]] = {
    name: importlib.import_module(f"{__name__}.{name}").make for name in types.OBJECTIVES
}


def make(config: Config, targets_K: np.ndarray | None = None) -> Objective:
    """The objective of `config.train.objective`.

    Args:
      targets_K: of the training rows, `RowPacker.targets_by_context`.

    Raises:
      ConfigError: no target would get another weight.
    """
    return OBJECTIVES[config.train.objective](config, targets_K)
