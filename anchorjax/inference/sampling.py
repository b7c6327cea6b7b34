"""The next token from logits: the most likely one, or one drawn at a temperature among the likeliest.

Sources: top-k, Fan et al. (arXiv 1805.04833); top-p (nucleus), Holtzman et al. (arXiv 1904.09751). As in transformers,
top-k is applied before top-p, and the token that reaches the share p is still in.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from anchorjax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

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

    def traced(self) -> "Draw":
        return Draw(
            jax.random.key_data(jax.random.key(self.seed)),
            np.float32(self.temperature),
            np.float32(self.top_p),
            self.temperature == 0,
            self.top_p < 1,
            self.top_k,
            self.not_first,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draw:
    """A `Sampling` as an argument of compiled programs: another seed, temperature or top-p compiles nothing again.

    Attributes:
      key: uint32 [2], data of the seed's key.
      temperature, top_p: float32 [].
      is_greedy, has_top_p, top_k, not_first: static.
    """

    key: ArrayLike
    temperature: ArrayLike
    top_p: ArrayLike
    is_greedy: bool = dataclasses.field(metadata={"static": True})
    has_top_p: bool = dataclasses.field(metadata={"static": True})
    top_k: int = dataclasses.field(metadata={"static": True})
    not_first: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def next_tokens(logits_BV: jax.Array, draw: Draw, prompt_B: jax.Array, place: jax.Array) -> jax.Array:
    """Chooses the next token of each row.

    Args:
      logits_BV: fp32, whole on each device.
      prompt_B: number of each row's prompt; place: index of the token after the prompt. They and the seed are all that
        chance depends on.

    Returns:
      int32 [B].
    """
    if draw.not_first:
        barred_V = np.isin(np.arange(logits_BV.shape[1]), draw.not_first)
        logits_BV = jnp.where(barred_V & (place == 0), -jnp.inf, logits_BV)
    if draw.is_greedy:
        return jnp.argmax(logits_BV, -1).astype(jnp.int32)

    def one(logits_V, prompt):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(draw.key), prompt), place)
        return jax.random.categorical(key, allowed_logits(logits_V, draw))

    return jax.vmap(one)(logits_BV, prompt_B).astype(jnp.int32)


def allowed_logits(logits_V: jax.Array, draw: Draw) -> jax.Array:
    """Logits at the temperature, -inf where top-k or top-p leave a token out."""
    logits_V = logits_V / draw.temperature
    if draw.top_k:
        kth = jax.lax.top_k(logits_V, min(draw.top_k, logits_V.shape[0]))[0][-1]
        logits_V = jnp.where(logits_V < kth, -jnp.inf, logits_V)
    if draw.has_top_p:
        ordered_V = jnp.sort(logits_V, descending=True)
        before_V = jnp.cumsum(jax.nn.softmax(ordered_V)) - jax.nn.softmax(ordered_V)
        least = jnp.min(jnp.where(before_V < draw.top_p, ordered_V, jnp.inf))
        logits_V = jnp.where(logits_V < least, -jnp.inf, logits_V)
    return logits_V
