"""EXACT (arXiv 2605.10544): targets that see a long context weigh more, the rarer ones by more."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax.config import Config
from anchorjax.errors import ConfigError
from anchorjax.models.decoder import Decoder
from anchorjax.models.spec import Spec
from anchorjax.types import Batch


@dataclasses.dataclass(frozen=True)
class Exact:
    """Weights that depend on the visible context alone.

    Attributes:
      weights: by bucket of the visible context; bucket k holds 2^k to 2^(k + 1) - 1 keys.
    """

    weights: tuple[float, ...]

    def prepare(self, params: Decoder, batch: Batch, spec: Spec) -> jax.Array:
        bucket_BT = 31 - jax.lax.clz(jnp.maximum(batch.visible_BT, 1))
        sharding = jax.typeof(bucket_BT).sharding.spec
        return jnp.asarray(self.weights, jnp.float32).at[bucket_BT].get(out_sharding=sharding)

    def weigh(self, nats_c: jax.Array, weights_c: jax.Array, aux_c: jax.Array) -> jax.Array:
        return weights_c * aux_c


def exact_weights(targets_K: np.ndarray, tail: int, alpha: float, gamma: float) -> np.ndarray:
    """The weight of a target by its bucket, float64 [K], from an epoch's number of targets by bucket.

    The tail is the buckets that begin at `tail` keys or more; q_b is a bucket's share of the tail's targets. Then

        weight_b = 1 + alpha * r_b / sum_b(q_b r_b)     r_b = q_b^(-gamma)

    in the tail and 1 elsewhere: the tail's targets get `alpha` more on average, and the rarer ones more of it. The
    paper adds a small number to q_b; here an empty bucket has weight 1 instead.
    """
    in_tail_K = (2 ** np.arange(len(targets_K)) >= tail) & (targets_K > 0)
    weights_K = np.ones(len(targets_K))
    q = targets_K[in_tail_K] / targets_K[in_tail_K].sum()
    r = q**-gamma
    weights_K[in_tail_K] += alpha * r / (q * r).sum()
    return weights_K


def make(config: Config, targets_K: np.ndarray | None) -> Exact:
    if targets_K is None:
        raise ValueError("train.objective=exact needs the number of training targets by visible context")
    train, T = config.train, config.data.seq_len
    tail = train.exact_tail or T // 4
    if not targets_K[2 ** np.arange(len(targets_K)) >= tail].any():
        longest = 2 ** int(np.flatnonzero(targets_K).max())
        allowed = f"no training target is in a bucket of {tail} keys or more; the last bucket begins at {longest}"
        raise ConfigError("train.exact_tail", train.exact_tail, allowed)
    return Exact(tuple(exact_weights(targets_K, tail, train.exact_alpha, train.exact_gamma).tolist()))
