"""Rotary embedding: phases against float64, and the property that attention relies on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.models import rope

H = 64


def exact(positions: np.ndarray, theta: float) -> tuple[np.ndarray, np.ndarray]:
    phases = positions[:, None].astype(np.float64) * theta ** (-np.arange(0, H, 2, dtype=np.float64) / H)
    return np.cos(phases), np.sin(phases)


def tables(positions: np.ndarray, theta: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = rope.tables(jnp.asarray(positions, jnp.int32)[None], 2**20, H, theta)
    return np.asarray(cos[0], np.float64), np.asarray(sin[0], np.float64)


@pytest.mark.parametrize("theta", [1e4, 5e6, 1e9])
def test_tables_are_exact_to_fp32_up_to_a_million_positions(theta, one_device):
    positions = np.concatenate([np.arange(5000), np.random.default_rng(0).integers(0, 2**20, 20000), [2**20 - 1]])
    for got, wanted in zip(tables(positions, theta), exact(positions, theta), strict=True):
        assert np.abs(got - wanted).max() < 2e-7


def test_phases_formed_in_fp32_would_fail_that(one_device):
    """The fault that the host tables avoid: 4e-3 at 64K tokens and theta 5e6."""
    positions = np.arange(2**16)
    phases = positions.astype(np.float32)[:, None] * np.float32(5e6) ** (-np.arange(0, H, 2, dtype=np.float32) / H)
    assert np.abs(np.cos(phases) - exact(positions, 5e6)[0]).max() > 1e-3


def rotated(x: jax.Array, positions: np.ndarray, dtype: str) -> jax.Array:
    cos, sin = rope.tables(jnp.asarray(positions, jnp.int32)[None], 2**20, H, 1e4)
    return rope.rotate(x, cos, sin, dtype)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20 - 400), st.integers(0, 2**20 - 400))
def test_scores_depend_on_distance_only(shift_a, shift_b):
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        x = jax.random.normal(jax.random.key(0), (1, 8, 2, H))
        places = np.arange(8) * 50

        def scores(shift):
            turned = rotated(x, places + shift, "float32")
            return jnp.einsum("btnh,bsnh->bnts", turned, turned)

        np.testing.assert_allclose(scores(shift_a), scores(shift_b), atol=5e-5)


def test_bfloat16_rotation_reproduces_the_fault(one_device):
    """A shift of 16 changes scores by far more in bf16 than in fp32 (arXiv 2411.13476, Section 2)."""
    x = jax.random.normal(jax.random.key(0), (1, 256, 2, H))

    def change(dtype):
        scores = []
        for shift in (0, 16):
            turned = rotated(x, np.arange(256) + shift, dtype)
            scores.append(jnp.einsum("btnh,bsnh->bnts", turned, turned))
        return float(jnp.mean(jnp.abs(scores[0] - scores[1])))

    assert change("bfloat16") > 100 * change("float32")


def test_rotation_keeps_dtype_and_length(one_device):
    x = jax.random.normal(jax.random.key(0), (1, 16, 2, H), jnp.bfloat16)
    turned = rotated(x, np.arange(16), "float32")
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-2)
