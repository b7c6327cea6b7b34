"""The feed-forward layer by chunks of a device's tokens: its values and gradients, and what its loop has inside."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from anchorjax import sharding
from anchorjax.models.decoder import FeedForward
from anchorjax.models.linear import named_leaves
from anchorjax.sharding import ACTIVATIONS
from anchorjax.training import trainable
from tests.models import making

B, D, F = 4, 16, 24
LORA = {"rank": 3, "alpha": 6.0, "targets": ("gate", "down")}


def spec_of(chunk: int, dtype: str = "float32", lora=None, **model):
    sizes = {"num_layers": 1, "d_model": D, "d_ff": F, "compute_dtype": dtype, "ffn_chunk": chunk}
    return making.spec_of(sizes | model, lora=lora)


def make_mesh(*sizes: int):
    return sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))


def inputs(spec, T: int):
    """A layer whose adapters are not zero, tokens and a cotangent, on the current mesh."""
    layer = jax.jit(lambda key: FeedForward(key, spec))(jax.random.key(0))
    leaves, structure = jax.tree.flatten(layer)
    drawn = [x + jax.random.normal(jax.random.key(i), x.shape, out_sharding=x.sharding) * 0.1 for i, x in
             enumerate(leaves)]  # fmt: skip
    x_BTD, dy_BTD = np.random.default_rng(0).normal(size=(2, B, T, D)).astype(spec.model.compute_dtype)
    put = functools.partial(jax.device_put, device=NamedSharding(jax.sharding.get_mesh(), ACTIVATIONS))
    return jax.tree.unflatten(structure, drawn), put(x_BTD), put(dy_BTD)


def gradients(layer, x_BTD, dy_BTD, spec) -> dict[str, jax.Array]:
    """Output, and gradients in the tokens and the trained weights, by name."""

    def loss(trained, x_BTD):
        y_BTD = trainable.put_back(trained, layer)(x_BTD, spec)
        return jnp.sum(y_BTD.astype(jnp.float32) * dy_BTD), y_BTD

    trained = trainable.of(layer)
    (of_weights, dx_BTD), y_BTD = jax.grad(loss, (0, 1), has_aux=True)(trained, x_BTD)
    return {"y": y_BTD, "dx": dx_BTD, **named_leaves(of_weights)}


def compare(mesh_shape, T: int, chunk: int, tolerance: float, dtype: str = "float32", **changes):
    with jax.set_mesh(make_mesh(*mesh_shape)):
        whole, by_chunks = (spec_of(size, dtype, **changes) for size in (0, chunk))
        arrays = inputs(whole, T)
        wanted, got = (jax.jit(functools.partial(gradients, spec=spec))(*arrays) for spec in (whole, by_chunks))
    assert got.keys() == wanted.keys() and len(got) >= 5
    for name, expected in wanted.items():
        assert got[name].sharding == expected.sharding and got[name].dtype == expected.dtype, name
        a, b = np.asarray(got[name], np.float32), np.asarray(expected, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0, err_msg=name)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 12).map(lambda half: 2 * half),
    st.integers(1, 50),
    st.sampled_from([(1, 1, 1, 1), (1, 2, 2, 2), (2, 2, 2, 1), (1, 4, 1, 2)]),
)
def test_chunks_of_any_size_change_nothing(T, chunk, mesh_shape):
    compare(mesh_shape, T, chunk, 1e-6)


@pytest.mark.parametrize("mesh_shape", [(1, 1, 1, 1), (1, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("changes", [{"activation": "gelu_tanh"}, {"lora": LORA}], ids=["gelu", "lora"])
def test_activations_and_adapters(mesh_shape, changes):
    compare(mesh_shape, 12, 5, 2e-6, **changes)


def test_in_bfloat16():
    """Up to roundings of 2^-9: one of each of the parts that are added up."""
    compare((1, 2, 2, 2), 24, 5, 2**-7, "bfloat16")


def test_weights_are_gathered_and_gradients_summed_outside_of_the_loop():
    with jax.set_mesh(make_mesh(1, 4, 2, 1)):
        spec = spec_of(3)
        program = jax.make_jaxpr(functools.partial(gradients, spec=spec))(*inputs(spec, 24)).jaxpr
    outside, inside = collectives(program), collectives(program, loops=True)
    assert not inside
    assert outside.count("all_gather") == 6  # three weights, in each pass
    assert outside.count("reduce_scatter") == 3


def test_sums_of_chunks_are_fp32():
    """3000 equal parts: in bfloat16 their sum would stop at 256 of them."""
    with jax.set_mesh(make_mesh(1, 1, 1, 1)):
        spec = spec_of(1, "bfloat16")
        layer, _, _ = inputs(spec, 4)
        tokens = NamedSharding(jax.sharding.get_mesh(), ACTIVATIONS)
        ones_BTD = jax.device_put(jnp.ones((1, 3000, D), "bfloat16"), tokens)
        many = jax.jit(functools.partial(gradients, spec=spec))(layer, ones_BTD, ones_BTD)
        one = jax.jit(functools.partial(gradients, spec=spec))(layer, ones_BTD[:, :1], ones_BTD[:, :1])
    for name in ("gate_DF", "up_DF", "down_FD"):
        np.testing.assert_allclose(many[name], 3000 * np.asarray(one[name]), rtol=2**-6, err_msg=name)


def collectives(jaxpr, loops: bool = False) -> list[str]:
    """Names of the collectives outside of loops, or inside."""
    found = []
    for equation in jaxpr.eqns:
        inner = list(jax.extend.core.jaxprs_in_params(equation.params))
        if equation.primitive.name == "scan":
            found += [name for each in inner for name in collectives(each) + collectives(each, True)] if loops else []
            continue
        found += [name for each in inner for name in collectives(each, loops)]
        if not loops and equation.primitive.name in ("all_gather", "reduce_scatter", "psum_scatter"):
            found.append(equation.primitive.name)
    return found
