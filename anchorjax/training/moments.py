"""Adam's moments in a dtype and a memory of their own (Kingma & Ba, arXiv 1412.6980).

- An update is computed in fp32, whatever the dtype in which its moments rest.
- A bfloat16 moment is rounded stochastically: up with a probability equal to the fraction that is cut off. To the
  nearest, v <- beta2 v + (1 - beta2) g^2 never falls if beta2 is above 1 - 2^-9 = 0.998, since less than half a unit in
  the last place is taken off: after one large gradient a weight would stay slow for ever. DeepSeek-V3 keeps both
  moments in bfloat16 (arXiv 2412.19437, Section 3.3.3).
- Moments that rest in the host's memory come to the device and go back layer by layer, inside of a scan over the
  stacked layers. The scan needs the gradients, so that no compiler can begin to copy before the backward pass ends.

The bits that decide how to round depend on the step, the leaf and the layer alone: any mesh and memory rounds alike.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from anchorjax.config import OptimizerConfig
from anchorjax.models.linear import named_leaves

_STACKED = "blocks."  # in front of the names of weights that are stacked along layers


def scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with moments in `config.moments_dtype`, resting on `config.moments_on`; same state."""

    def zeros(x: jax.Array) -> jax.Array:
        dtype = x.dtype if config.moments_dtype == "weights" else config.moments_dtype
        return _rest(jnp.zeros_like(x, dtype), config)

    def init(params) -> optax.ScaleByAdamState:
        mu, nu = (jax.tree.map(zeros, params) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(gradients, state: optax.ScaleByAdamState, params=None):
        count = optax.safe_increment(state.count)
        names = list(named_leaves(gradients))
        leaves, structure = jax.tree.flatten(gradients)
        all_leaves = list(zip(leaves, jax.tree.leaves(state.mu), jax.tree.leaves(state.nu), strict=True))
        keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), count), i) for i in range(len(names))]
        stacked = [i for i, name in enumerate(names) if name.startswith(_STACKED)]

        def of_layer(_, layer):
            number, parts = layer
            pairs = zip(stacked, parts, strict=True)
            return None, [_one(jax.random.fold_in(keys[i], number), *part, count, config) for i, part in pairs]

        new = {i: _one(keys[i], *all_leaves[i], count, config) for i in range(len(names)) if i not in stacked}
        if stacked:
            parts = [all_leaves[i] for i in stacked]
            _, done = jax.lax.scan(of_layer, None, (jnp.arange(len(parts[0][0])), parts))
            new |= dict(zip(stacked, done, strict=True))
        updates, mu, nu = (structure.unflatten([new[i][part] for i in range(len(names))]) for part in range(3))
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _one(key: jax.Array, gradient: jax.Array, mu: jax.Array, nu: jax.Array, count: jax.Array, config: OptimizerConfig):
    """(update, next mu, next nu) of one array."""
    moments = [jax.device_put(x, jax.memory.Space.Device) if config.moments_on == "host" else x for x in (mu, nu)]
    gradient_32, mu_32, nu_32 = (x.astype(jnp.float32) for x in (gradient, *moments))
    mu_32 = optax.tree.update_moment(gradient_32, mu_32, config.beta1, 1)
    nu_32 = optax.tree.update_moment_per_elem_norm(gradient_32, nu_32, config.beta2, 2)
    corrected = (optax.tree.bias_correction(x, b, count) for x, b in ((mu_32, config.beta1), (nu_32, config.beta2)))
    mean, square = corrected
    update = mean / (jnp.sqrt(square) + config.eps)
    if mu.dtype == jnp.bfloat16:
        bits = jax.random.bits(key, mu.shape, jnp.uint32, **_lies_like(gradient))
        mu_32, nu_32 = rounded(mu_32, bits & 0xFFFF), rounded(nu_32, bits >> 16)
    return update.astype(gradient.dtype), *(_rest(x.astype(mu.dtype), config) for x in (mu_32, nu_32))


def rounded(x: jax.Array, noise: jax.Array) -> jax.Array:
    """fp32 values that bfloat16 can hold: x's neighbours, whose mean over `noise`, uint32 below 2^16, is x."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    neighbours = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), neighbours, x)  # a GPU's NaN is 0x7FFFFFFF: with noise it would become -0.0


def _rest(x: jax.Array, config: OptimizerConfig) -> jax.Array:
    return jax.device_put(x, jax.memory.Space.Host) if config.moments_on == "host" else x


def _lies_like(x: jax.Array) -> dict[str, Any]:
    """Keyword arguments that make new values lie as x on the current mesh, if there is one."""
    return {} if jax.sharding.get_abstract_mesh().empty else {"out_sharding": jax.typeof(x).sharding}
