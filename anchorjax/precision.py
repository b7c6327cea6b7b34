"""How exactly every product is computed: decided here by what it is for, and not by a device's default.

A product of fp32 operands at JAX's default precision is one pass of bfloat16 on a TPU and TF32 on an NVIDIA GPU; on a
CPU it is fp32, so that no test there would tell. What a product is for shows in its operands' dtypes:

    bf16 and bf16   products are exact in fp32, in which all devices add them up: the default
    fp32 and fp32   fp32 by contract: HIGHEST, which is six passes of bf16 on a TPU and IEEE fp32 on a GPU
    fp32 and bf16   fp32 by contract: HIGHEST on a CPU; elsewhere the fp32 operand is the sum of two bf16 numbers, and
                    two passes of bf16 keep 16 of its 24 bits (docs/precision.md has error and cost of each choice)

On a CPU the choice changes nothing: all three are fp32 there. It is made for the platform that is compiled for.
Implementations of attention ask `of` with the dtype of their arrays: for bf16 arrays `xla` widens tiles to fp32, and an
accelerator rounds them again.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

EXACT = jax.lax.Precision.HIGHEST


def of(dtype: DTypeLike) -> jax.lax.Precision | None:
    """What a product needs whose operands are of this dtype: EXACT for fp32, nothing for less."""
    return EXACT if dtype == jnp.float32 else None


def einsum(subscripts: str, x: jax.Array, y: jax.Array, **kwargs) -> jax.Array:
    """`jnp.einsum` of two arrays of float32 or bfloat16 that keeps what the fp32 one of them says.

    Args:
      kwargs: `preferred_element_type` and `out_sharding` of `jnp.einsum`. Without the first the result has the wider
        operand's dtype.

    Not to be differentiated for two bf16 operands with a preferred fp32: the cotangent is fp32, and JAX's own rule
    multiplies it at default precision. The loss, which needs that gradient, makes it by hand.
    """
    exact = functools.partial(jnp.einsum, subscripts, precision=of(jnp.result_type(x, y)), **kwargs)
    if x.dtype == y.dtype:
        return exact(x, y)
    return jax.lax.platform_dependent(x, y, cpu=exact, default=functools.partial(_in_two_parts, subscripts, **kwargs))


def _in_two_parts(subscripts: str, x: jax.Array, y: jax.Array, **kwargs) -> jax.Array:
    """The fp32 operand as hi + lo, both bf16: two passes, where HIGHEST takes three on a TPU and IEEE fp32 on a GPU.

    XLA knows a widened bf16 operand: its second and third parts are zeros. Of two fp32 operands HIGHEST takes six.
    """
    kwargs = {"preferred_element_type": jnp.float32} | kwargs
    product = functools.partial(jnp.einsum, subscripts, **kwargs)
    if x.dtype == jnp.float32:
        hi, lo = _halves(x)
        return product(hi, y) + product(lo, y)
    hi, lo = _halves(y)
    return product(x, hi) + product(x, lo)


def rounded(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A sum over devices in `dtype`, rounded once behind the sum.

    In front of a plain cast to bfloat16, libtpu 0.0.42 makes a bf16 all-reduce of an fp32 one, also with a barrier
    between both.
    """
    if x.dtype == jnp.float32 and jnp.dtype(dtype) == jnp.bfloat16:
        x = _reduced(x)
    return x.astype(dtype)


def widened(x: jax.Array) -> jax.Array:
    """`x` in float32; its gradient is `rounded` to x's dtype."""
    return _widened(x.dtype.name, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _widened(dtype: str, x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


_widened.defvjp(lambda dtype, x: (x.astype(jnp.float32), None), lambda dtype, _, gradient: (rounded(gradient, dtype),))


def _reduced(x: jax.Array) -> jax.Array:
    """The fp32 numbers that bfloat16 has."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Not by a cast there and back, which XLA may leave out as excess precision: lo would be zero.
    hi = _reduced(x)
    return hi.astype(jnp.bfloat16), (x - hi).astype(jnp.bfloat16)
