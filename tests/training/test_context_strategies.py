"""Training under every context strategy and mesh of eight devices takes the steps of one device."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from anchorjax import sharding
from anchorjax.config import MeshConfig
from anchorjax.training.setup import check_attention
from anchorjax.types import CONTEXT_STRATEGIES, Batch
from tests.training.making import make_batch, make_mesh, make_state, make_steps

T, ROWS, STEPS = 64, 16, 2
# Grouped queries, layers with and without a window, soft caps, two micro-batches. Without clipping, Adam's first
# moments are the gradients times a constant. With a large epsilon no rounding of a tiny gradient decides a sign.
COMBINED = {
    "model__num_heads": 16,
    "model__num_kv_heads": 8,
    "model__head_dim": 4,
    "model__sliding_window": 20,
    "model__global_every": 2,
    "model__attention_soft_cap": 3.0,
    "attention__implementation": "xla",
    "attention__q_tile": 8,
    "attention__kv_tile": 16,
    "data__batch_size": ROWS,
    "train__grad_accum_steps": 2,
    "train__steps": 4,
    "optimizer__clip_norm": 0.0,
    "optimizer__eps": 1e-3,
}
FULL, LORA = {}, {"lora__rank": 4, "lora__targets": ("q", "k", "v", "o")}
SHAPES = [shape for shape in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(shape) == 8]


def batch() -> Batch:
    """Rows of an anchor and uneven documents, every second one with two documents in pieces and padding behind them.

    The tokens lie in chunks in another order than the row's, with the anchor first.
    """
    made, index = make_batch(ROWS, T), np.arange(T)
    plain = 1 + np.searchsorted([3, 20, 47], index, side="right")
    pieces = np.where(index < 50, 1 + index // 3 % 2, -1)
    segments = np.stack([plain, pieces] * (ROWS // 2)).astype(np.int32)
    segments[:, 0] = 0
    made = dataclasses.replace(made, segment_ids_BT=segments, is_target_BT=made.is_target_BT & (segments > 0))
    order = np.concatenate([index[:4], index[4:].reshape(-1, 4)[np.random.default_rng(0).permutation(15)].ravel()])
    return jax.tree.map(lambda x_BT: x_BT[:, order], made)


def steps_on(shape: tuple[int, ...], strategy: str, tiny_config, features: dict):
    """(losses, parameters, moments) after STEPS steps, on the host."""
    config = tiny_config(**COMBINED, **features)
    mesh_config = MeshConfig(*shape, context_strategy=strategy)
    config = dataclasses.replace(config, mesh=mesh_config)
    steps, mesh, losses = make_steps(config), make_mesh(*shape), []
    check_attention(config, dict(zip(sharding.AXES, shape, strict=True)))
    with jax.set_mesh(mesh):
        state, train = make_state(steps), jax.jit(steps.train)
        for _ in range(STEPS):
            state, metrics = train(state, sharding.shard_batch(batch(), mesh))
            losses.append(float(metrics["loss"]))
        return losses, *(jax.tree.map(np.asarray, jax.tree.leaves(x)) for x in (state.params, state.opt_state))


@pytest.fixture(scope="module")
def one_device(tiny_config):
    return functools.cache(lambda lora: steps_on((1, 1, 1, 1), "all_gather", tiny_config, LORA if lora else FULL))


def assert_the_same_steps(found, wanted):
    """Losses, parameters and moments agree to 1e-5 of each array's norm."""
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    for ours, theirs in zip(found[1] + found[2], wanted[1] + wanted[2], strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


TELLING = [(1, 1, 8, 1), (2, 1, 2, 2)]
CASES = [(shape, strategy, FULL) for strategy in CONTEXT_STRATEGIES for shape in TELLING]
CASES += [((1, 2, 4, 1), strategy, LORA) for strategy in CONTEXT_STRATEGIES]


@pytest.mark.parametrize(("shape", "strategy", "features"), CASES)
def test_steps_are_those_of_one_device(shape, strategy, features, one_device, tiny_config):
    assert_the_same_steps(steps_on(shape, strategy, tiny_config, features), one_device(features is LORA))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", CONTEXT_STRATEGIES)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in TELLING])
def test_steps_on_every_other_mesh_are_those_of_one_device(shape, strategy, one_device, tiny_config):
    assert_the_same_steps(steps_on(shape, strategy, tiny_config, FULL), one_device(False))
