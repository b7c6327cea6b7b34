"""No device holds whole weights: the step is that of one device, and its program has no array of a whole matrix."""

import collections
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from anchorjax.sharding import abstract, shard_batch
from anchorjax.training.state import init_state
from tests import tiny
from tests.compilers import require_compiler, run_program
from tests.training.making import assert_trees_close, make_batch, make_mesh, make_state, make_steps

B, T = 8, 64
# With eps = 1 an update is in proportion to the gradient.
LINEAR = {"optimizer__eps": 1.0, "optimizer__warmup_steps": 0, "optimizer__clip_norm": 0.0}
MODELS = {
    "tied": {"model__vocab_size": 321},
    "untied, soft cap": {"model__vocab_size": 323, "model__tie_embeddings": False, "model__final_soft_cap": 2.0},
    "biases": {"model__qkv_bias": True, "model__qk_norm": True, "model__scale_embeddings": True},
    "adapters": {"model__qkv_bias": True, "lora__rank": 4, "lora__alpha": 8.0, "lora__targets": ("q", "o", "down")},
}


def make(model: str, **overrides):
    chunk = {"train__loss_chunk": 12}  # divides no device's tokens
    return make_steps(tiny.config(data__batch_size=B, **chunk, **LINEAR, **MODELS[model], **overrides))


@functools.cache
def first_state(model: str):
    """Host arrays; noise on all weights, so that no adapter and no bias is zero."""
    steps, rng = make(model), np.random.default_rng(0)
    with jax.set_mesh(make_mesh()):
        state = make_state(steps)
    noisy = jax.tree.map(lambda x: np.asarray(x) + 0.02 * rng.normal(size=x.shape).astype(x.dtype), state.params)
    return dataclasses.replace(state, params=noisy)


@functools.cache
def one_step(model: str, sizes: tuple[int, ...], **overrides):
    """(metrics, next state) of the step from `first_state` on a mesh of these sizes."""
    mesh, steps = make_mesh(*sizes), make(model, **overrides)
    with jax.set_mesh(mesh):
        layout = abstract(lambda: init_state(0, steps.spec, steps.optimizer))
        state = jax.device_put(first_state(model), jax.tree.map(lambda leaf: leaf.sharding, layout))
        state, metrics = jax.jit(steps.train)(state, shard_batch(make_batch(B, T), mesh))
    return metrics, state


@pytest.mark.parametrize(
    ("model", "sizes", "parts"),
    [
        ("tied", (1, 8, 1, 1), 1),
        ("tied", (1, 1, 4, 2), 1),
        ("untied, soft cap", (1, 2, 2, 2), 2),
        ("untied, soft cap", (2, 4, 1, 1), 1),
        ("biases", (2, 2, 2, 1), 1),
        ("adapters", (2, 2, 1, 2), 1),
    ],
    ids=str,
)
def test_the_step_is_that_of_one_device(model, sizes, parts):
    """Loss, gradients (the first moments hold them) and weights, with vocabularies that no mesh divides."""
    assert_step_is_that_of_one_device(model, sizes, train__grad_accum_steps=parts)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [("tied", (1, 1, 8, 1)), ("untied, soft cap", (1, 2, 2, 2)), ("biases", (2, 2, 2, 1)), ("adapters", (1, 2, 4, 1))],
    ids=str,
)
def test_the_step_with_weights_shared_over_context_is_that_of_one_device(model, sizes):
    """Tiled feed-forward layers gather and reduce for themselves."""
    tiled = {"model__ffn_chunk": 8} if model == "biases" else {}
    assert_step_is_that_of_one_device(model, sizes, mesh__shard_weights_over="fsdp_context", **tiled)


def assert_step_is_that_of_one_device(model, sizes, **overrides):
    metrics, state = one_step(model, sizes, **overrides)
    expected_metrics, expected_state = one_step(model, (1, 1, 1, 1))
    assert_trees_close(metrics, expected_metrics, rtol=1e-5)
    for leaf, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected_state.params), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-7)
    for leaf, expected in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(expected_state.opt_state), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def shapes(text: str) -> set[tuple[int, ...]]:
    """Sides, ascending, of all arrays of a part of a compiled program."""
    found = re.findall(r"\b(?:pred|bf16|[sfu]\d+)\[([\d,]+)\]", text)
    return {tuple(sorted(int(side) for side in sides.split(",") if side != "1")) for sides in found}


V, D, F, L = 640, 96, 224, 3


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("sizes", [(1, 4, 2, 1), (1, 2, 2, 2)], ids=str)
def test_no_device_holds_a_whole_matrix_of_the_vocabulary_or_a_whole_stack(sizes, tie):
    """Neither weights nor gradients: it is the sides of all arrays in the compiled program that are looked at."""
    model = {"num_layers": L, "d_model": D, "d_ff": F, "vocab_size": V, "tie_embeddings": tie}
    config = tiny.config(data__batch_size=4, **{f"model__{name}": value for name, value in model.items()})
    steps, mesh = make_steps(config), make_mesh(*sizes)
    with jax.set_mesh(mesh):
        state = abstract(lambda: init_state(0, steps.spec, steps.optimizer))
        compiled = jax.jit(steps.train).lower(state, shard_batch(make_batch(4, T), mesh)).compile()
    text, (_, fsdp, _, tensor) = compiled.as_text(), sizes
    found, summed = shapes(text), shapes("\n".join(re.findall(r"= (.*) all-reduce\(", text)))
    assert (D // fsdp // tensor, V) in found and (D, V // fsdp // tensor) in found  # as they rest, and in the loss
    assert not found & {(D, V), (D, V // tensor), (L, D, F), (L, D, F // tensor)}
    # Over `context` devices sum up what rests on them.
    assert (D // fsdp, F // tensor) in summed and (D, F // tensor) not in summed


def test_gradients_are_exchanged_in_the_dtype_that_the_configuration_names():
    mesh = make_mesh(1, 4, 2, 1)
    for name, dtype in {"auto": "f32", "bfloat16": "bf16"}.items():
        steps = make("tied", mesh__gradient_dtype=name)
        with jax.set_mesh(mesh):
            state = abstract(lambda steps=steps: init_state(0, steps.spec, steps.optimizer))
            text = jax.jit(steps.train).lower(state, shard_batch(make_batch(B, T), mesh)).as_text()
        kinds = re.findall(r"reduce_scatter.*?-> tensor<(?:\d+x)+(\w+)>", text, re.DOTALL)
        assert kinds.count(dtype) >= 7, kinds  # as many as a layer has matrices


PROGRAM = """
import json, re
from anchorjax import targets
targets.prepare()
import jax
from jax.sharding import NamedSharding
from anchorjax import sharding
from anchorjax.training.state import init_state
from tests import tiny
from tests.training.making import make_batch, make_steps

mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "context": 2, "tensor": 1}, targets.devices("v5p"))
config = tiny.config(
    data__batch_size=2,
    data__seq_len=256,
    model__param_dtype="bfloat16",
    model__compute_dtype="bfloat16",
    model__tie_embeddings=False,
    mesh__gradient_dtype="float32",
    attention__implementation="xla",
)
steps, place = make_steps(config), NamedSharding(mesh, sharding.BATCH)
with jax.set_mesh(mesh):
    state = sharding.abstract(lambda: init_state(0, steps.spec, steps.optimizer))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), make_batch(2, 256))
    text = jax.jit(steps.train).lower(state, batch).compile().as_text()
found = re.findall(r"= (.*?) all-reduce(?:-start)?\\(", text)
print(json.dumps([kind for line in found for kind in re.findall(r"(bf16|f32)\\[\\d+,[\\d,]+\\]", line)]))
"""


def test_v5p_sums_gradients_of_bfloat16_weights_in_float32():
    require_compiler("v5p")
    found = run_program(PROGRAM)
    assert found.count("f32") >= 9 and "bf16" not in found, found


def sums_over(axis: str, jaxpr, times: int = 1) -> collections.Counter:
    """How often a program sums over an axis of the mesh, in loops too, by the shape of what is summed."""
    found = collections.Counter()
    for one in jaxpr.eqns:
        if one.primitive.name.startswith("psum") and axis in one.params["axes"]:
            found.update({x.aval.shape: times for x in one.outvars})
        inner = times * one.params.get("length", 1) if one.primitive.name == "scan" else times
        for part in jax.tree.leaves(list(one.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(part, "jaxpr"):
                found.update(sums_over(axis, getattr(part.jaxpr, "jaxpr", part.jaxpr), inner))
            elif hasattr(part, "eqns"):
                found.update(sums_over(axis, part, inner))
    return found


def test_gradients_cross_data_by_parts_in_each_layer_of_each_micro_batch():
    mesh, steps = make_mesh(2, 2), make("tied", mesh__data=2, train__grad_accum_steps=2)
    with jax.set_mesh(mesh):
        state = abstract(lambda: init_state(0, steps.spec, steps.optimizer))
        program = jax.make_jaxpr(steps.train)(state, shard_batch(make_batch(B, T), mesh))
    found = sums_over("data", program.jaxpr)
    D, F, N, H, layers, parts = 32, 64, 2, 16, 2, 2
    assert found[D // 2, F] == 2 * layers * parts and found[F, D // 2] == layers * parts  # gate, up; down
    assert found[D // 2, N, H] == 3 * layers * parts and found[N, H, D // 2] == layers * parts  # q, k, v; out
