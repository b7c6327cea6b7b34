"""The step: one loss and one gradient, however the batch is cut up and spread."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from anchorjax import data
from anchorjax.masks import Mask
from anchorjax.sharding import shard_batch
from tests import tiny
from tests.attention.contract import layouts
from tests.training.making import assert_trees_close, make_batch, make_mesh, make_state, make_steps

ONE = make_mesh()
# Adam divides by |gradient| + eps: with eps = 1 an update is in proportion to the gradient, noise and all.
LINEAR = {"optimizer__eps": 1.0, "optimizer__warmup_steps": 0, "optimizer__clip_norm": 0.0}
B, T = 8, 64


def gradients(accumulation: int):
    steps = make_steps(tiny.config(data__batch_rows=B, train__accumulation=accumulation))
    with jax.set_mesh(ONE):
        params = make_state(steps).params
        batch = shard_batch(make_batch(B, T), ONE)
        return *jax.jit(steps._gradients)(params, batch, jax.random.key(0)), steps, params, batch


@pytest.fixture(scope="module")
def whole():
    return gradients(1)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_nothing(whole, accumulation):
    loss, grads, *_ = gradients(accumulation)
    np.testing.assert_allclose(loss, whole[0], rtol=1e-6)
    assert_trees_close(grads, whole[1], rtol=1e-4, atol=1e-7)


def test_loss_is_the_mean_over_all_valid_targets(whole):
    loss, _, steps, params, batch = whole
    with jax.set_mesh(ONE):
        nats, weights = np.asarray(jax.jit(steps.nats)(params, batch), np.float64), np.asarray(batch.weights_BT)
    row_sums, row_counts = (nats * weights).sum(1), weights.sum(1)
    np.testing.assert_allclose(loss, row_sums.sum() / row_counts.sum(), rtol=1e-6)
    mean_of_means = (row_sums / row_counts).mean()
    assert abs(mean_of_means - loss) > 1e-3, "these rows could not tell the two apart"


@functools.cache
def one_step(sizes: tuple[int, ...], accumulation: int):
    """(metrics, state) after a step on a mesh of these sizes."""
    mesh = make_mesh(*sizes)
    config = tiny.config(data__batch_rows=B, train__accumulation=accumulation, **LINEAR)
    steps = make_steps(config)
    config.check_devices(8) if np.prod(sizes) == 8 and -1 not in sizes else None
    with jax.set_mesh(mesh):
        state, metrics = jax.jit(steps.train)(make_state(steps), shard_batch(make_batch(B, T), mesh))
    return metrics, state


@pytest.mark.parametrize(
    ("sizes", "accumulation"),
    [((8, 1, 1, 1), 1), ((1, 8, 1, 1), 1), ((2, 2, 2, 1), 2), ((1, 2, 2, 2), 1), ((1, 1, 8, 1), 1)],
    ids=str,
)
def test_any_mesh_takes_the_step_of_one_device(sizes, accumulation):
    metrics, state = one_step(sizes, accumulation)
    expected_metrics, expected_state = one_step((1, 1, 1, 1), 1)
    assert_trees_close(metrics, expected_metrics, rtol=1e-5)
    assert_trees_close(state, expected_state, rtol=1e-4, atol=1e-7)


def test_weights_and_moments_are_cut_alike():
    _, state = one_step((1, 2, 2, 2), 1)
    adam = next(part for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu"))
    shardings = [[x.sharding.spec for x in jax.tree.leaves(tree)] for tree in (state.params, adam.mu, adam.nu)]
    assert shardings[0] == shardings[1] == shardings[2]
    matrices = [x for x in jax.tree.leaves(state.params) if x.ndim > 2 or x.shape[0] == 320]
    assert all("fsdp" in str(x.sharding.spec) and "tensor" in str(x.sharding.spec) for x in matrices)


def test_dropout_follows_the_step_and_is_off_in_evaluation():
    steps = make_steps(tiny.config(model__dropout=0.5))
    with jax.set_mesh(ONE):
        state, batch = make_state(steps), shard_batch(make_batch(2, T), ONE)
        train, nats = jax.jit(steps.train), jax.jit(steps.nats)
        first, again = (train(state, batch)[1]["loss"] for _ in range(2))
        later = train(dataclasses.replace(state, step=state.step + 1), batch)[1]["loss"]
        other_key = train(dataclasses.replace(state, key=jax.random.key(9)), batch)[1]["loss"]
        plain = make_steps(tiny.config(model__dropout=0.0))
        np.testing.assert_array_equal(nats(state.params, batch), jax.jit(plain.nats)(state.params, batch))
    assert first == again
    assert len({float(x) for x in (first, later, other_key)}) == 3


def test_state_is_donated_and_a_few_rows_are_learned_by_heart():
    rate = {"optimizer__learning_rate": 1e-2, "optimizer__schedule": "constant", "train__steps": 60}
    steps = make_steps(tiny.config(**rate))
    with jax.set_mesh(ONE):
        train = jax.jit(steps.train, donate_argnums=0)
        state, batch = make_state(steps), shard_batch(make_batch(2, T), ONE)
        before, losses = state, []
        for _ in range(60):
            state, metrics = train(state, batch)
            losses.append(float(metrics["loss"]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
    assert losses[0] == pytest.approx(np.log(320), abs=0.2) and losses[-1] < 0.3
    assert int(state.step) == 60


def live_pairs(num_anchors: int):
    steps = dataclasses.replace(make_steps(tiny.config()), num_anchors=num_anchors)
    return jax.jit(steps._live_pairs)


COUNT = functools.cache(live_pairs)


@settings(max_examples=40, deadline=None)
@given(layouts())
def test_live_pairs_are_those_of_the_dense_mask(layout):
    segments_BT, num_anchors = layout
    with jax.set_mesh(ONE):
        count = COUNT(num_anchors)(jnp.asarray(segments_BT))
    dense = Mask.from_segments(jnp.asarray(segments_BT), num_anchors).materialize()
    assert int(count) == int(dense.sum())


@pytest.mark.parametrize("mask", ["anchor", "intra_doc", "full"])
def test_live_pairs_of_packed_rows(corpus, mask):
    store, tokenizer, config = corpus("validation", data__mask=mask, data__row_length=64, data__batch_rows=2)
    anchors = data.num_anchors(mask)
    for batch in data.eval_rows(store, tokenizer, config, max_rows=6):
        with jax.set_mesh(ONE):
            count = COUNT(anchors)(jnp.asarray(batch.segment_ids_BT))
        dense = Mask.from_segments(jnp.asarray(batch.segment_ids_BT), anchors).materialize()
        assert int(count) == int(dense.sum())
