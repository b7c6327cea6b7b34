"""A digest of each leaf of a state: what tells a damaged checkpoint from a whole one.

Computed on the devices, shard by shard, so that no host ever holds the state; the same on every mesh, as
sums of integers do not depend on their order.
"""

import jax
import jax.numpy as jnp
import numpy as np

_ODD = 2_654_435_761  # Knuth's multiplicative hash: makes neighbouring places count very differently


def digests(leaves: dict[str, jax.Array]) -> dict[str, int]:
    """32-bit digest of every leaf's bits and their places, by name.

    Each 32-bit word is multiplied with an odd number that depends on its place, and all are added modulo 2^32.
    An odd factor can be inverted, so a change of any one word always changes the digest; others pass unseen
    with odds of about one in 2^32.
    """
    return {name: int(value) for name, value in jax.device_get(_digests(leaves)).items()}


@jax.jit
def _digests(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _digest(leaf) for name, leaf in leaves.items()}


def _digest(leaf: jax.Array) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    words = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    factors = jnp.uint32(1)
    for axis, size in enumerate(words.shape):
        # One-dimensional along its axis, so that it takes the sharding of the words it meets.
        place = np.arange(size, dtype=np.uint32).reshape([-1 if a == axis else 1 for a in range(words.ndim)])
        factors = factors + place * np.uint32(2 * pow(_ODD, axis + 1, 2**31))
    return jnp.sum(words * factors, dtype=jnp.uint32)
