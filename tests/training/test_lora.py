"""Adapters: what they start as, what is trained and kept beside them, and what merging makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax.checkpoints.huggingface import checkpoint as hf_checkpoint
from anchorjax.checkpoints.huggingface.weights import Weights
from anchorjax.models.decoder import Decoder, logits
from anchorjax.models.linear import named_leaves
from anchorjax.sharding import shard_batch
from tests import tiny
from tests.training.making import assert_trees_close, make_batch, make_mesh, make_state, make_steps

ALL = ("q", "k", "v", "o", "gate", "up", "down")
LORA = {"lora__rank": 4, "lora__alpha": 8.0, "lora__targets": ALL, "model__num_kv_heads": 1}


@pytest.fixture
def one_device():
    mesh = make_mesh(1, 1, 1, 1)
    with jax.set_mesh(mesh):
        yield mesh


def forward(params, batch, spec):
    arrays = batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT
    return jax.jit(lambda p, *a: logits(p.hidden(*a, spec), p.unembedding_DV(spec)))(params, *arrays)


def split(params) -> tuple[dict, dict]:
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    adapters = {name: leaf for name, leaf in leaves.items() if "_adapter." in name}
    return adapters, {name: leaf for name, leaf in leaves.items() if name not in adapters}


def test_a_fresh_adapter_changes_nothing(one_device):
    steps, plain = make_steps(tiny.config(**LORA)), make_steps(tiny.config(model__num_kv_heads=1))
    batch = shard_batch(make_batch(2, 64), one_device)
    adapted, bare = make_state(steps).params, make_state(plain).params
    assert len(split(adapted)[0]) == 2 * len(ALL)
    np.testing.assert_array_equal(forward(adapted, batch, steps.spec), forward(bare, batch, plain.spec))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_adapters_alone_are_trained_and_have_moments(one_device, accumulation):
    steps = make_steps(tiny.config(**LORA, train__grad_accum_steps=accumulation))
    state = make_state(steps)
    before_adapters, before_base = split(state.params)
    moments = [x.size for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(moments) == 2 * sum(x.size for x in before_adapters.values())
    train, batch = jax.jit(steps.train), shard_batch(make_batch(2, 64), one_device)
    losses = []
    for _ in range(8):
        state, metrics = train(state, batch)
        losses.append(float(metrics["loss"]))
    adapters, base = split(state.params)
    for name in before_base:
        np.testing.assert_array_equal(base[name], before_base[name], err_msg=name)
    for name in before_adapters:
        assert (adapters[name] != before_adapters[name]).any(), name
    assert losses[-1] < losses[0] - 0.01


def test_the_frozen_base_rests_in_compute_dtype(one_device):
    steps = make_steps(tiny.config(**LORA, model__compute_dtype="bfloat16"))
    adapters, base = split(make_state(steps).params)
    assert {x.dtype.name for name, x in base.items() if "norm" not in name} == {"bfloat16"}
    assert {x.dtype.name for name, x in base.items() if "norm" in name} == {"float32"}  # as the maths uses them
    assert {x.dtype.name for x in adapters.values()} == {"float32"}


def test_merged_weights_compute_what_the_adapters_do(one_device, tmp_path):
    steps, plain = make_steps(tiny.config(**LORA)), make_steps(tiny.config(model__num_kv_heads=1))
    batch = shard_batch(make_batch(2, 64), one_device)
    params = make_state(steps).params
    noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    leaves = {name: noise(x) if "_adapter." in name else x for name, x in named_leaves(params).items()}
    params = jax.tree.unflatten(jax.tree.structure(params), leaves.values())
    wanted = forward(params, batch, steps.spec)
    hf_checkpoint.save(params, steps.spec.model, steps.spec.lora, tmp_path, "float32")
    bare = jax.jit(lambda: Decoder(jax.random.key(0), plain.spec))()
    assert float(jnp.max(jnp.abs(forward(bare, batch, plain.spec) - wanted))) > 0.1
    merged = hf_checkpoint.load(bare, plain.spec.model, Weights.open(tmp_path))
    np.testing.assert_allclose(forward(merged, batch, plain.spec), wanted, atol=1e-5 * float(jnp.std(wanted)) * 10)


def test_every_mesh_takes_one_device_s_step():
    config = tiny.config(**(LORA | {"model__num_kv_heads": 2}), data__batch_size=4)
    steps, results = make_steps(config), []
    for sizes in ((1, 1, 1, 1), (1, 2, 2, 2)):
        mesh = make_mesh(*sizes)
        with jax.set_mesh(mesh):
            state = make_state(steps)
            for seed in range(2):  # an adapter's first step leaves `down` alone, as `up` is zero
                state, _ = jax.jit(steps.train)(state, shard_batch(make_batch(4, 64, seed), mesh))
            results.append(jax.tree.map(np.asarray, split(state.params)[0]))
    assert_trees_close(*results, atol=2e-5)
