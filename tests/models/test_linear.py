"""Names, shapes and dtypes of weights are those of the first checkpoints, and roles go by types."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax import sharding
from anchorjax.models.linear import Bias, Linear, named_leaves, named_linears, named_params
from anchorjax.training.state import init_state
from tests import tiny
from tests.training.making import make_mesh, make_steps

ALL = ("q", "k", "v", "o", "gate", "up", "down")
CASES = {
    "qwen2-lora": {"model__qkv_bias": True, "lora__rank": 4, "lora__alpha": 8.0, "lora__targets": ALL},
    "gemma": {
        "model__sliding_window": 16,
        "model__global_every": 2,
        "model__attention_soft_cap": 50.0,
        "model__qk_norm": True,
        "model__post_norms": True,
        "model__norm_offset": True,
        "model__scale_embeddings": True,
        "model__final_soft_cap": 30.0,
        "model__tie_embeddings": False,
    },
}
SAVED = json.loads((pathlib.Path(__file__).parent / "leaves.json").read_text())


def state_of(case: str):
    steps = make_steps(tiny.config(**CASES[case]))
    with jax.set_mesh(make_mesh()):
        return sharding.abstract(lambda: init_state(0, steps.spec, steps.optimizer))


@pytest.mark.parametrize("case", CASES)
def test_leaves_are_those_of_the_first_checkpoints(case):
    """tests/models/leaves.json was written before there was a `Linear`."""
    leaves = named_leaves(state_of(case))
    params = {k.removeprefix("params."): [list(x.shape), x.dtype.name] for k, x in leaves.items() if "params." in k}
    assert params == SAVED[case]
    assert sorted(name for name in leaves if not name.startswith("params.")) == SAVED[f"{case} optimizer"]


def test_values_of_named_leaves_are_in_the_order_of_the_tree():
    state = state_of("qwen2-lora")
    assert all(a is b for a, b in zip(named_leaves(state).values(), jax.tree.leaves(state), strict=True))


def test_roles_are_types():
    params = state_of("qwen2-lora").params
    kinds = named_params(params)
    assert {name.split(".")[-1] for name, x in kinds.items() if isinstance(x, Bias)} == {
        "q_bias_NH",
        "k_bias_KH",
        "v_bias_KH",
    }
    linears = named_linears(params)
    assert len(linears) == len(ALL) and linears["blocks.attention.o_NHD"].adapter.down.shape == (2, 2, 16, 4)


def test_a_bias_s_gradient_in_bfloat16_is_a_sum_in_fp32_that_is_rounded_once():
    spec = make_steps(tiny.config(model__compute_dtype="bfloat16")).spec
    dy_BTNH = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (4, 2048, 2, 16)), jnp.bfloat16)
    with jax.set_mesh(make_mesh()):
        linear = Linear("D->NH", jnp.zeros((32, 2, 16)), spec, has_bias=True)
        x_BTD = jnp.zeros((4, 2048, 32), jnp.bfloat16)
        loss = lambda linear: jnp.sum(linear(x_BTD, spec).astype(jnp.float32) * dy_BTNH)  # noqa: E731
        gradient_NH = jax.jit(jax.grad(loss))(linear).bias[...]
    np.testing.assert_allclose(gradient_NH, np.asarray(dy_BTNH, np.float64).sum((0, 1)), rtol=2**-8)
