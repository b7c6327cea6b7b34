"""What blocks are made of: weights and their sharding, projections with adapters, RMSNorm, dropout.

Sources: RMSNorm (arXiv 1910.07467), LoRA (2106.09685). Letters: types.py; r is the rank of an adapter.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from anchorjax import precision
from anchorjax.config import ModelConfig
from anchorjax.models.spec import Spec
from anchorjax.sharding import ACTIVATIONS, TOKENS


def draw(key: jax.Array, shape: tuple[int, ...], fan_in: float, dtype: str) -> jax.Array:
    """Truncated normal of variance 1 / fan_in: outputs have the inputs' variance at every width.

    The usual constant 0.02 is that at D = 2500 only; narrow models would start with nearly uniform attention.
    """
    return fan_in**-0.5 * jax.random.truncated_normal(key, -3, 3, shape, dtype)


def gathered(param: nnx.Param, pspec: P, dtype: str) -> jax.Array:
    """The weight as its user wants it: cast first, so that half as many bytes travel."""
    return reshard(param[...].astype(dtype), pspec)


class Adapter(nnx.Module):
    """LoRA: two thin fp32 matrices whose product is added to a frozen weight; it starts at zero.

    Attributes:
      down: [inputs..., r], drawn.
      up: [r, outputs...], zeros.
    """

    def __init__(self, key: jax.Array, inputs: tuple[int, ...], outputs: tuple[int, ...], pspec: P, rank: int):
        down_pspec, up_pspec = _adapter_specs(pspec, len(inputs))
        self.down = nnx.Param(reshard(draw(key, (*inputs, rank), math.prod(inputs), "float32"), down_pspec))
        self.up = nnx.Param(reshard(jnp.zeros((rank, *outputs), "float32"), up_pspec))


def _adapter_specs(pspec: P, num_inputs: int) -> tuple[P, P]:
    """Both matrices are cut as the weight is, and never along r."""
    return P(*pspec[:num_inputs], None), P(None, *pspec[num_inputs:])


def project(x: jax.Array, weight: nnx.Param, adapter: Adapter | None, axes: str, pspec: P, out: P, spec: Spec):
    """x [B, T, inputs...] times a weight [inputs..., outputs...], and its adapter's share.

    Args:
      axes: letters of both, as "d->nh".
      spec: how the weight is cut where it is used; out: of the result.
    """
    inputs, outputs = axes.split("->")
    dtype = spec.model.compute_dtype
    y = _matmul(x, gathered(weight, pspec, dtype), inputs, outputs, out)
    if adapter is None:
        return y
    down_pspec, up_pspec = _adapter_specs(pspec, len(inputs))
    down, up = gathered(adapter.down, down_pspec, dtype), gathered(adapter.up, up_pspec, dtype)
    share = _matmul(_matmul(x, down, inputs, "r", ACTIVATIONS), up, "r", outputs, out)
    return y + share * (spec.lora.alpha / spec.lora.rank)


def _matmul(x: jax.Array, weight: jax.Array, inputs: str, outputs: str, out: P) -> jax.Array:
    """x [B, T, inputs...] times weight [inputs..., outputs...].

    Where no device holds but a part of the tokens, rows and tokens are made one axis: the weight's gradient sums over
    both, and for a sum over two axes XLA on CPUs first makes transposed copies, a third of a feed-forward layer's time.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if any(mesh.shape[axis] > 1 for axis in TOKENS):
        return precision.einsum(f"bt{inputs},{inputs}{outputs}->bt{outputs}", x, weight, out_sharding=out)
    B, T = x.shape[:2]
    whole = P(None, None, *jax.typeof(x).sharding.spec[2:])
    x_X = reshard(x, whole).reshape(B * T, *x.shape[2:])
    y_X = precision.einsum(f"x{inputs},{inputs}{outputs}->x{outputs}", x_X, weight, out_sharding=P(None, *out[2:]))
    return reshard(y_X.reshape(B, T, *y_X.shape[1:]), out)


def norm_scale(size: int, spec: Spec) -> nnx.Param:
    """The scale of a norm that changes nothing at first."""
    fill = jnp.zeros if spec.model.norm_offset else jnp.ones
    return nnx.Param(fill(size, spec.model.param_dtype))


def rms_norm(x: jax.Array, scale: nnx.Param, config: ModelConfig) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in fp32; returns x's dtype. Gemma's is 1 + scale."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_eps)
    factor = scale[...].astype(jnp.float32)
    factor = 1.0 + factor if config.norm_offset else factor
    return (wide * broadcast(factor, wide)).astype(x.dtype)


def broadcast(weight: jax.Array, x: jax.Array) -> jax.Array:
    """A weight of x's last axes, repeated to x's shape.

    NumPy's rules first give it axes of length 1, and its gradient from one row is then a sum over the middle axis of
    [1, 4096, 576]: 110 ms with XLA's CPU library (jax 0.10.2), where the sum over both leading axes takes 1.
    """
    axes = tuple(range(x.ndim - weight.ndim, x.ndim))
    return jax.lax.broadcast_in_dim(weight, x.shape, axes, out_sharding=jax.typeof(x).sharding)


def dropout(x_BTD: jax.Array, key: jax.Array | None, place: int, rate: float) -> jax.Array:
    """Zeroes a share `rate` of a residual branch and scales up the rest; `place` tells a block's branches apart."""
    if key is None:
        return x_BTD
    keep = jax.random.bernoulli(jax.random.fold_in(key, place), 1 - rate, x_BTD.shape, out_sharding=ACTIVATIONS)
    return jnp.where(keep, x_BTD / (1 - rate), 0).astype(x_BTD.dtype)


def named_leaves(tree) -> dict[str, jax.Array]:
    """Leaves by name, e.g. "blocks.attention.q_DNH": the same names whatever wraps them in memory."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return {name(path).removesuffix(".value"): leaf for path, leaf in leaves}
