"""Digests see every change of one word, and no change of mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from anchorjax.checkpoints.digest import digests
from tests.training.making import make_mesh


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 5), st.integers(0, 6), st.integers(0, 31))
def test_one_bit_changes_it(dtype, row, column, bit):
    array = np.asarray(np.random.default_rng(0).normal(size=(6, 7)) * 100, jnp.dtype(dtype))
    bits = array.view(f"uint{8 * array.itemsize}").copy()
    bits[row, column] ^= np.asarray(1 << bit % (8 * array.itemsize), bits.dtype)
    assert digests({"x": jnp.asarray(array)}) != digests({"x": jnp.asarray(bits.view(array.dtype))})


def test_swapped_places_change_it():
    array = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    found = {digests({"x": jnp.asarray(x)})["x"] for x in (array, array[::-1], array[:, ::-1], np.roll(array, 1, 0))}
    assert len(found) == 4


def test_same_on_any_mesh_and_for_keys():
    array = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    alone = digests({"x": jnp.asarray(array), "key": jax.random.key(3)})
    mesh = make_mesh(1, 4, 1, 2)
    cut = jax.device_put(array, NamedSharding(mesh, P("fsdp", "tensor")))
    assert digests({"x": cut, "key": jax.device_put(jax.random.key(3), NamedSharding(mesh, P()))}) == alone
    assert digests({"key": jax.random.key(4)})["key"] != alone["key"]
