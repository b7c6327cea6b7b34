"""The next token from logits: the most likely one, or one drawn at a temperature among the likeliest.

Sources: top-k, Fan et al. (arXiv 1805.04833); top-p (nucleus), Holtzman et al. (arXiv 1904.09751). As in transformers,
top-k is applied before top-p, and the token that reaches the share p is still in.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen (static).

    Attributes:
      temperature: 0 takes the most likely token; logits are divided by it otherwise.
      top_k: how many of the likeliest tokens may be drawn; 0 is all.
      top_p: the smallest set of the likeliest tokens with at least this probability may be drawn.
      seed: the same seed gives the same text of a prompt, whatever else is in its batch.
      not_first: ids that no text begins with.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    not_first: tuple[int, ...] = ()

    def __post_init__(self):
        """Raises UsageError naming the first value that is not allowed."""
        for name, holds, allowed in (
            ("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "0 or more"),
            ("top-k", self.top_k >= 0, "0 or more"),
            ("top-p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", 0 <= self.seed < 2**63, "0 to 2**63 - 1"),
        ):
            if not holds:
                value = getattr(self, name.replace("-", "_"))
                raise UsageError(f"--{name}={value} is not allowed: it must be {allowed}")


def next_tokens(logits_BV: jax.Array, sampling: Sampling, prompt_B: jax.Array, place: jax.Array) -> jax.Array:
    """int32 [B].

    Args:
      logits_BV: fp32, whole on each device.
      prompt_B: number of each row's prompt; place: of the token behind the prompt. They and the seed are all that
        chance depends on.
    """
    if sampling.not_first:
        barred_V = np.isin(np.arange(logits_BV.shape[1]), sampling.not_first)
        logits_BV = jnp.where(barred_V & (place == 0), -jnp.inf, logits_BV)
    if not sampling.temperature:
        return jnp.argmax(logits_BV, -1).astype(jnp.int32)

    def draw(logits_V, prompt):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(sampling.seed), prompt), place)
        return jax.random.categorical(key, allowed_logits(logits_V, sampling))

    return jax.vmap(draw)(logits_BV, prompt_B).astype(jnp.int32)


def allowed_logits(logits_V: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits at the temperature, -inf where top-k or top-p leave a token out."""
    logits_V = logits_V / sampling.temperature
    if sampling.top_k:
        kth = jax.lax.top_k(logits_V, min(sampling.top_k, logits_V.shape[0]))[0][-1]
        logits_V = jnp.where(logits_V < kth, -jnp.inf, logits_V)
    if sampling.top_p < 1:
        ordered_V = jnp.sort(logits_V, descending=True)
        before_V = jnp.cumsum(jax.nn.softmax(ordered_V)) - jax.nn.softmax(ordered_V)
        least = jnp.min(jnp.where(before_V < sampling.top_p, ordered_V, jnp.inf))
        logits_V = jnp.where(logits_V < least, -jnp.inf, logits_V)
    return logits_V
