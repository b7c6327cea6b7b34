"""AdamW with warm-up, and the gradient clip before it (optax; Loshchilov & Hutter, arXiv 1711.05101)."""

import math

import jax
import jax.numpy as jnp
import optax

from anchorjax.config import OptimizerConfig
from anchorjax.models.linear import Bias, LogitScale, Scale, map_by_type
from anchorjax.training import moments


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 over warmup_steps, then `config.schedule`, which ends at `steps`.

    "constant" stays at the peak; "cosine" and "linear" fall from it to final_fraction of it; "wsd" (warm-up, stable,
    decay: Hu et al., arXiv 2404.06395, Section 4) stays, and falls linearly over the last `decay_steps(config, steps)`.

    The first step is not wasted on a rate of 0: step n (from 0) takes (n + 1) / warmup_steps of the peak.
    """
    peak, warmup, final = config.learning_rate, config.warmup_steps, config.final_fraction
    rest = max(steps - warmup, 1)
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, final)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, final * peak, rest)
    else:
        decay = decay_steps(config, steps)
        fall = optax.linear_schedule(peak, final * peak, decay)
        after = optax.join_schedules([optax.constant_schedule(peak), fall], [max(steps - warmup - decay, 0)])
    if not warmup:
        return after
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def decay_steps(config: OptimizerConfig, steps: int) -> int:
    """Steps of wsd's decay: as given, or a tenth of the run, which Hu et al. found to be enough.

    The decay does not begin in the warm-up, so that it ends with the run: after a long warm-up it is shorter.
    """
    return config.decay_steps or max(1, min(steps // 10, steps - config.warmup_steps))


def steps_of_any_length(config: OptimizerConfig, steps: int) -> float:
    """How many of the first steps have a learning rate that does not depend on `steps`, the length of the run."""
    if config.schedule == "constant":
        return math.inf
    return steps - decay_steps(config, steps) if config.schedule == "wsd" else config.warmup_steps


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The clip and AdamW, whose state has the same leaves wherever and in whatever dtype its moments rest."""
    schedule = make_schedule(config, steps)
    if config.moments_dtype == "weights" and config.moments_on == "device":
        scale = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    else:
        scale = moments.scale_by_adam(config)
    decay = optax.add_decayed_weights(config.weight_decay, _decays)
    adamw = optax.chain(scale, decay, optax.scale_by_learning_rate(schedule))
    clip = clip_by_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, adamw)


def norm(gradients) -> jax.Array:
    """The Euclidean norm of all leaves together, fp32 [].

    Squares are taken and summed in fp32 whatever the leaves' dtype: optax sums bfloat16 leaves in bfloat16, which is
    2% off for 50 matrices of 40 x 40 beside one of 300 x 300.
    """
    return optax.tree.norm(optax.tree.cast(gradients, jnp.float32))


def clip_by_norm(most: float) -> optax.GradientTransformation:
    """Scales gradients whose `norm` is above `most` down to it (Pascanu et al., arXiv 1211.5063).

    optax's, in fp32: a bfloat16 gradient is rounded once, after it was scaled.
    """
    clip = optax.clip_by_global_norm(most)

    def update(gradients, state, params=None):
        clipped, state = clip.update(optax.tree.cast(gradients, jnp.float32), state, params)
        return optax.tree.cast_like(clipped, gradients), state

    return optax.GradientTransformation(clip.init, update)


def _decays(params):
    """True for matrices, False for norm scales and biases (whose decay would only shrink the residual branches).

    Decay would draw a logit scale to uniform attention.
    """
    return map_by_type(lambda kind, _: not issubclass(kind, Scale | Bias | LogitScale), params)
