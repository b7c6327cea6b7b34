"""The step: one loss and one gradient, however the batch is cut up and spread."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from anchorjax import data
from anchorjax.masks import Mask, anchors_of
from anchorjax.models.linear import named_leaves
from anchorjax.sharding import abstract, shard_batch
from anchorjax.training.state import init_state
from tests import tiny
from tests.attention.contract import layouts
from tests.training.making import assert_trees_close, make_batch, make_mesh, make_state, make_steps

ONE = make_mesh()
# Adam divides by |gradient| + eps: with eps = 1 an update is in proportion to the gradient, noise and all.
LINEAR = {"optimizer__eps": 1.0, "optimizer__warmup_steps": 0, "optimizer__clip_norm": 0.0}
B, T = 8, 64


@functools.cache
def fresh_state():
    steps = make_steps(tiny.config())
    with jax.set_mesh(ONE):
        return make_state(steps)


@functools.cache
def one_step(sizes: tuple[int, ...], accumulation: int):
    """(metrics, next state) of the step from `fresh_state` on a mesh of these sizes."""
    mesh = make_mesh(*sizes)
    steps = make_steps(tiny.config(data__batch_size=B, train__grad_accum_steps=accumulation, **LINEAR))
    with jax.set_mesh(mesh):
        layout = abstract(lambda: init_state(0, steps.spec, steps.optimizer))
        state = jax.device_put(fresh_state(), jax.tree.map(lambda leaf: leaf.sharding, layout))
        state, metrics = jax.jit(steps.train)(state, shard_batch(make_batch(B, T), mesh))
    return metrics, state


@pytest.mark.parametrize(
    ("sizes", "accumulation"),
    [((1, 1, 1, 1), 4), ((8, 1, 1, 1), 1), ((1, 8, 1, 1), 1), ((2, 2, 2, 1), 2), ((1, 2, 2, 2), 1)],
    ids=str,
)
def test_any_mesh_and_accumulation_take_the_step_of_one_device(sizes, accumulation):
    """Loss, gradients (the first moment holds them) and weights, of rows with very different target counts."""
    metrics, state = one_step(sizes, accumulation)
    expected_metrics, expected_state = one_step((1, 1, 1, 1), 1)
    assert_trees_close(metrics, expected_metrics, rtol=1e-5)
    assert_trees_close(state, expected_state, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_keeps_every_shape_and_dtype_of_the_state(dtype, accumulation):
    """Otherwise a checkpoint holds other dtypes than the first state of a resumed run, and is refused."""
    steps = make_steps(tiny.config(data__batch_size=B, train__grad_accum_steps=accumulation, model__param_dtype=dtype))
    with jax.set_mesh(ONE):
        state = jax.eval_shape(lambda: init_state(0, steps.spec, steps.optimizer))
        after, _ = jax.eval_shape(steps.train, state, shard_batch(make_batch(B, T), ONE))
    for before, leaf in zip(named_leaves(state).items(), named_leaves(after).values(), strict=True):
        name, was = before
        assert (leaf.shape, leaf.dtype) == (was.shape, was.dtype), name
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(dtype)}


def test_accumulation_in_bfloat16_takes_the_step_of_the_whole_batch():
    """Up to roundings of 2^-9: one of each of the 8 parts, which may be larger than their sum, and one of the sum."""
    moments = []
    for accumulation in (1, 8):
        config = tiny.config(
            data__batch_size=B, train__grad_accum_steps=accumulation, model__param_dtype="bfloat16", **LINEAR
        )
        steps = make_steps(config)
        with jax.set_mesh(ONE):
            state, _ = jax.jit(steps.train)(make_state(steps), shard_batch(make_batch(B, T), ONE))
        (adam,) = (x for x in jax.tree.leaves(state.opt_state, is_leaf=_has_moments) if _has_moments(x))
        moments.append({name: np.asarray(x, np.float64) for name, x in named_leaves(adam.mu).items()})
    for name, whole in moments[0].items():
        np.testing.assert_allclose(moments[1][name], whole, rtol=0, atol=2**-6 * np.abs(whole).max(), err_msg=name)


def test_the_logged_norm_of_bfloat16_gradients_is_that_of_float64():
    steps = make_steps(tiny.config(data__batch_size=B, model__param_dtype="bfloat16", **LINEAR))
    with jax.set_mesh(ONE):
        state, batch = make_state(steps), shard_batch(make_batch(B, T), ONE)
        _, grads = jax.jit(steps._gradients)(state.params, batch, state.key)
        _, metrics = jax.jit(steps.train)(state, batch)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("bfloat16")}
    length = np.sqrt(sum((np.asarray(x, np.float64) ** 2).sum() for x in jax.tree.leaves(grads)))
    assert metrics["grad_norm"].dtype == jnp.float32 and float(metrics["grad_norm"]) == pytest.approx(length, rel=1e-4)


def test_loss_is_the_mean_over_all_valid_targets():
    loss, steps = float(one_step((1, 1, 1, 1), 1)[0]["loss"]), make_steps(tiny.config())
    with jax.set_mesh(ONE):
        batch = shard_batch(make_batch(B, T), ONE)
        nats = np.asarray(jax.jit(steps.nats)(fresh_state().params, batch), np.float64)
    weights = np.asarray(batch.is_target_BT)
    row_sums, row_counts = (nats * weights).sum(1), weights.sum(1)
    assert loss == pytest.approx(row_sums.sum() / row_counts.sum(), rel=1e-6)
    assert abs((row_sums / row_counts).mean() - loss) > 1e-3, "these rows cannot tell a mean of means"


def _has_moments(node) -> bool:
    return hasattr(node, "mu")


def test_weights_and_moments_are_cut_alike():
    _, state = one_step((1, 2, 2, 2), 1)
    (adam,) = (x for x in jax.tree.leaves(state.opt_state, is_leaf=_has_moments) if _has_moments(x))
    shardings = [[x.sharding.spec for x in jax.tree.leaves(tree)] for tree in (state.params, adam.mu, adam.nu)]
    assert shardings[0] == shardings[1] == shardings[2]
    matrices = [x for x in jax.tree.leaves(state.params) if x.ndim > 2 or x.shape[0] == 320]
    assert all("fsdp" in str(x.sharding.spec) and "tensor" in str(x.sharding.spec) for x in matrices)


def test_dropout_follows_the_step_and_is_off_in_evaluation():
    steps, state = make_steps(tiny.config(model__dropout=0.5)), fresh_state()
    with jax.set_mesh(ONE):
        batch, train = shard_batch(make_batch(2, T), ONE), jax.jit(steps.train)
        first, again = (train(state, batch)[1]["loss"] for _ in range(2))
        later = train(dataclasses.replace(state, step=state.step + 1), batch)[1]["loss"]
        other_key = train(dataclasses.replace(state, key=jax.random.key(9)), batch)[1]["loss"]
        assert "random_bits" in str(jax.make_jaxpr(steps.train)(state, batch))
        assert "random_bits" not in str(jax.make_jaxpr(steps.nats)(state.params, batch))
    assert first == again
    assert len({float(x) for x in (first, later, other_key)}) == 3


def test_state_is_donated_and_a_few_rows_are_learned_by_heart():
    rate = {"optimizer__learning_rate": 1e-2, "optimizer__schedule": "constant", "train__steps": 60}
    steps, losses = make_steps(tiny.config(**rate)), []
    with jax.set_mesh(ONE):
        train = jax.jit(steps.train, donate_argnums=0)
        before = state = jax.tree.map(jnp.copy, fresh_state())
        batch = shard_batch(make_batch(2, T), ONE)
        for _ in range(60):
            state, metrics = train(state, batch)
            losses.append(float(metrics["loss"]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
    assert losses[0] > np.log(320) - 0.1 and losses[-1] < 0.3
    assert int(state.step) == 60


@functools.cache
def counter(num_anchors: int):
    steps = dataclasses.replace(make_steps(tiny.config()), num_anchors=num_anchors)
    return jax.jit(steps._live_pairs)


@settings(max_examples=40, deadline=None)
@given(layouts(83))
def test_live_pairs_are_those_of_the_dense_mask(layout):
    segments_BT, num_anchors = layout
    with jax.set_mesh(ONE):
        index_BT = jnp.broadcast_to(jnp.arange(83, dtype=jnp.int32), segments_BT.shape)
        count = counter(num_anchors)(jnp.asarray(segments_BT), index_BT)
    dense = Mask.from_segments(jnp.asarray(segments_BT), num_anchors).materialize()
    assert int(count) == int(dense.sum())


@pytest.mark.parametrize("mask", ["anchor", "intra_doc", "full"])
def test_live_pairs_of_packed_rows(corpus, mask):
    store, tokenizer, config = corpus("validation", data__mask=mask, data__seq_len=64, data__batch_size=2)
    anchors = anchors_of(mask)
    for batch in data.eval_rows(store, tokenizer, config, max_rows=6):
        with jax.set_mesh(ONE):
            count = counter(anchors)(jnp.asarray(batch.segment_ids_BT), jnp.asarray(batch.index_BT))
        dense = Mask.from_segments(jnp.asarray(batch.segment_ids_BT), anchors).materialize()
        assert int(count) == int(dense.sum())
