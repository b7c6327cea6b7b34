"""A digest of each leaf of a state: what tells a damaged checkpoint from a whole one.

Computed on the devices, shard by shard, so that no host ever holds the state; the same on every mesh, as
sums of integers do not depend on their order.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

PIECES = 256  # of a leaf at most: there are fewer layers than that

_ODD = 2_654_435_761  # Knuth's multiplicative hash: makes neighbouring places count very differently


def digests(leaves: dict[str, jax.Array]) -> dict[str, int]:
    """32-bit digest of every leaf's bits and their places, by name.

    Each 32-bit word is multiplied with an odd number that depends on its place, and all are added modulo 2^32.
    An odd factor can be inverted, so a change of any one word always changes the digest; others pass unseen
    with odds of about one in 2^32.
    """
    return {name: int(_digest(leaf)) for name, leaf in leaves.items()}  # one by one: see below what each takes


@jax.jit
def _digest(leaf: jax.Array) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.ndim < 2 or _is_cut(leaf, axis=0):
        return _weighted_sum(_words(leaf), jnp.uint32(1))

    # Piece by piece: on a CPU the product is not fused into the sum, and takes twice the memory of bfloat16 words.
    size = len(leaf)
    length = 1 if size <= PIECES else size // math.gcd(size, PIECES)

    def add_piece(number: jax.Array, total: jax.Array) -> jax.Array:
        piece = _words(jax.lax.dynamic_slice_in_dim(leaf, number * length, length))
        piece = jax.lax.optimization_barrier(piece)  # else XLA widens the words of all pieces at once
        return total + _weighted_sum(piece, 1 + number.astype(jnp.uint32) * length * _step(0))

    return jax.lax.fori_loop(0, size // length, add_piece, jnp.uint32(0))


def _words(x: jax.Array) -> jax.Array:
    """The bits of x as integers, in the device's memory."""
    if jax.typeof(x).memory_space == jax.memory.Space.Host:
        x = jax.device_put(x, jax.memory.Space.Device)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))


def _is_cut(x: jax.Array, axis: int) -> bool:
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] or ()
    return any(sharding.mesh.shape[name] > 1 for name in ((names,) if isinstance(names, str) else names))


def _weighted_sum(words: jax.Array, factors: jax.Array) -> jax.Array:
    """The sum of the words times their factors, which grow along each axis."""
    for axis, size in enumerate(words.shape):
        # One-dimensional along its axis, so that it takes the sharding of the words it meets.
        place = np.arange(size, dtype=np.uint32).reshape([-1 if a == axis else 1 for a in range(words.ndim)])
        factors = factors + place * _step(axis)
    return jnp.sum(words.astype(jnp.uint32) * factors, dtype=jnp.uint32)


def _step(axis: int) -> np.uint32:
    return np.uint32(2 * pow(_ODD, axis + 1, 2**31))
