"""RMSNorm (arXiv 1910.07467) and dropout. Letters: types.py."""

import jax
import jax.numpy as jnp

from anchorjax.config import ModelConfig
from anchorjax.models.linear import Scale, broadcast
from anchorjax.models.spec import Spec
from anchorjax.sharding import ACTIVATIONS


def norm_scale(size: int, spec: Spec) -> Scale:
    """The scale of a norm that changes nothing at first."""
    fill = jnp.zeros if spec.model.norm_offset else jnp.ones
    return Scale(fill(size, spec.model.param_dtype))


def rms_norm(x: jax.Array, scale: Scale, config: ModelConfig) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in fp32; returns x's dtype. Gemma's is 1 + scale."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_eps)
    factor = scale[...].astype(jnp.float32)
    factor = 1.0 + factor if config.norm_offset else factor
    return (wide * broadcast(factor, wide)).astype(x.dtype)


def dropout(x_BTD: jax.Array, key: jax.Array | None, place: int, rate: float) -> jax.Array:
    """Zeroes a share `rate` of a residual branch and scales up the rest; `place` tells a block's branches apart."""
    if key is None:
        return x_BTD
    keep = jax.random.bernoulli(jax.random.fold_in(key, place), 1 - rate, x_BTD.shape, out_sharding=ACTIVATIONS)
    return jnp.where(keep, x_BTD / (1 - rate), 0).astype(x_BTD.dtype)
