"""Objectives: the contract of all, and weights that come from the token's own nats."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from anchorjax.models.loss import weighted_nats
from anchorjax.sharding import ACTIVATIONS, BATCH, UNEMBEDDING, abstract, shard_batch
from anchorjax.training.objectives import OBJECTIVES
from anchorjax.training.state import init_state
from tests import tiny
from tests.training.making import assert_trees_close, make_batch, make_mesh, make_state, make_steps

LINEAR = {"optimizer__eps": 1.0, "optimizer__warmup_steps": 0, "optimizer__clip_norm": 0.0}
B, T, D, V = 8, 64, 16, 96
ONE = make_mesh()


@dataclasses.dataclass(frozen=True)
class LikeLongCE:
    """A weight from the chunk's own nats and from another's, as in LongCE: min(exp(short - long), 5)."""

    def prepare(self, params, batch, spec):
        return {"short": 2.0 + 0.125 * batch.positions_BT.astype(jnp.float32)}

    def weigh(self, nats_c, weights_c, aux_c):
        return weights_c * jnp.minimum(jnp.exp(aux_c["short"] - nats_c), 5.0)


TARGETS_K = np.array([8, 40, 100, 300, 200, 50, 0])  # of rows of 64 tokens; the tail begins at 16 keys
ALL = {**OBJECTIVES, "like_longce": lambda config, targets_K: LikeLongCE()}
# With the defaults of some objectives all targets of such short rows weigh the same.
KEYS = {"longce": {"train__objective": "longce", "train__longce_context": 6, "train__longce_stride": 5}}


@functools.cache
def one_step(name, sizes, accumulation):
    config = tiny.config(data__batch_size=B, train__grad_accum_steps=accumulation, **LINEAR, **KEYS.get(name, {}))
    steps = dataclasses.replace(make_steps(config), objective=ALL[name](config, TARGETS_K))
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        layout = abstract(lambda: init_state(0, steps.spec, steps.optimizer))
        state = jax.device_put(first_state(), jax.tree.map(lambda leaf: leaf.sharding, layout))
        state, metrics = jax.jit(steps.train)(state, shard_batch(make_batch(B, T), mesh))
    return metrics, state


@functools.cache
def first_state():
    with jax.set_mesh(ONE):
        return make_state(make_steps(tiny.config()))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("sizes", "accumulation"), [((1, 2, 2, 2), 2), ((1, 1, 1, 1), 4)], ids=str)
def test_contract_any_mesh_and_accumulation_take_the_same_step(name, sizes, accumulation):
    metrics, state = one_step(name, sizes, accumulation)
    expected_metrics, expected_state = one_step(name, (1, 1, 1, 1), 1)
    assert_trees_close(metrics, expected_metrics, rtol=2e-5)
    assert_trees_close(state, expected_state, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_contract_the_loss_is_the_weighted_sum_over_the_number_of_targets(name):
    """Against float64 on whole rows: nats of the evaluation, weights of the objective."""
    config = tiny.config(**KEYS.get(name, {}))
    steps, objective = make_steps(config), ALL[name](config, TARGETS_K)
    with jax.set_mesh(ONE):
        batch = shard_batch(make_batch(B, T), ONE)
        nats_BT = np.asarray(jax.jit(steps.nats)(first_state().params, batch), np.float64)
        aux = jax.tree.map(np.asarray, objective.prepare(first_state().params, batch, steps.spec))
    is_target_BT = np.asarray(batch.is_target_BT)
    weights_BT = np.asarray(objective.weigh(nats_BT, is_target_BT / is_target_BT.sum(), aux), np.float64)
    metrics = one_step(name, (1, 1, 1, 1), 1)[0]
    assert float(metrics["loss"]) == pytest.approx((weights_BT * nats_BT).sum(), rel=1e-5)
    assert float(metrics["targets"]) == is_target_BT.sum(), "targets are counted, not weights summed"


def test_the_mean_is_what_it_was():
    """The loss and gradient norm of one device that were recorded before objectives had a seam."""
    metrics = one_step("mean", (1, 1, 1, 1), 1)[0]
    assert float(metrics["loss"]) == pytest.approx(float.fromhex("0x1.9470f80000000p+2"), rel=3e-7)
    assert float(metrics["grad_norm"]) == pytest.approx(float.fromhex("0x1.6930b60000000p+0"), rel=3e-7)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 2, 2, 2)], ids=str)
def test_the_gradient_takes_weights_from_the_chunks_own_nats_as_constants(sizes):
    """Against jax.grad of the dense loss whose weights are explicit numbers; chunks that do not divide the row."""
    mesh, rng = make_mesh(*sizes), np.random.default_rng(0)
    values = rng.normal(size=(B, T, D)), rng.normal(size=(D, V)), rng.integers(0, V, (B, T)), rng.random((B, T))
    dtypes, specs = ("float32", "float32", "int32", "float32"), (ACTIVATIONS, UNEMBEDDING, BATCH, BATCH)
    short_BT = np.float32(rng.random((B, T)) * 6)
    weigh = LikeLongCE().weigh

    def dense(h, w):
        logits = h @ w
        chosen = jnp.take_along_axis(logits, values[2][..., None], -1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    with jax.set_mesh(mesh):
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
        h, w, targets, weights = (put(x.astype(d), s) for x, d, s in zip(values, dtypes, specs, strict=True))
        aux = {"short": put(short_BT, BATCH)}
        loss = lambda h, w: weighted_nats(h, w, targets, weights, aux, 7, 0.0, weigh)  # noqa: E731
        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(h, w)
        alone = jax.jit(loss)(h, w)
    with jax.enable_x64(True):
        h, w, weights = values[0].astype(np.float64), values[1].astype(np.float64), values[3]
        constant = np.asarray(weigh(dense(h, w), weights, {"short": short_BT}))
        assert np.ptp(constant / weights) > 1, "weights that hardly differ would prove nothing"
        expected, wanted = jax.value_and_grad(lambda h, w: (constant * dense(h, w)).sum(), argnums=(0, 1))(h, w)
    np.testing.assert_allclose([value, alone], float(expected), rtol=1e-5)
    for got, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
