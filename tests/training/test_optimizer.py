"""Schedules, weight decay and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from anchorjax.models.linear import Scale
from anchorjax.training.optimizer import make_optimizer, make_schedule, norm, steps_of_any_length
from tests import tiny

PEAK = 0.5


def optimizer_config(**changes):
    values = {"learning_rate": PEAK, "warmup_steps": 4, "final_fraction": 0.1, "weight_decay": 0.0} | changes
    return tiny.config(train__steps=100, **{f"optimizer__{key}": value for key, value in values.items()}).optimizer


def update(config, grads, params):
    optimizer = make_optimizer(config, steps=10)
    return optimizer.update(grads, optimizer.init(params), params)[0]


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 4, {0: PEAK / 4, 1: PEAK / 2, 3: PEAK, 4: PEAK, 19: PEAK, 30: PEAK}),
        ("constant", 0, {0: PEAK, 19: PEAK}),
        ("constant", 1, {0: PEAK, 1: PEAK}),
        ("cosine", 4, {0: PEAK / 4, 3: PEAK, 4: PEAK, 12: 0.55 * PEAK, 20: 0.1 * PEAK, 30: 0.1 * PEAK}),
        ("cosine", 0, {0: PEAK, 10: 0.55 * PEAK, 20: 0.1 * PEAK}),
        ("cosine", 40, {0: PEAK / 40, 19: PEAK / 2}),
        ("linear", 4, {0: PEAK / 4, 3: PEAK, 4: PEAK, 12: 0.55 * PEAK, 20: 0.1 * PEAK, 30: 0.1 * PEAK}),
        ("linear", 0, {0: PEAK, 10: 0.55 * PEAK, 20: 0.1 * PEAK}),
        ("wsd", 4, {0: PEAK / 4, 3: PEAK, 4: PEAK, 18: PEAK, 19: 0.55 * PEAK, 20: 0.1 * PEAK, 30: 0.1 * PEAK}),
        ("wsd", 0, {0: PEAK, 18: PEAK, 19: 0.55 * PEAK, 20: 0.1 * PEAK}),
        ("wsd", 40, {0: PEAK / 40, 19: PEAK / 2}),
    ],
)
def test_schedule_values(schedule, warmup, expected):
    rate = make_schedule(optimizer_config(schedule=schedule, warmup_steps=warmup), steps=20)
    np.testing.assert_allclose([rate(step) for step in expected], list(expected.values()), rtol=1e-6)


def test_steps_of_wsd_decay_are_those_given():
    rate = make_schedule(optimizer_config(schedule="wsd", decay_steps=8), steps=20)
    expected = {4: PEAK, 12: PEAK, 16: 0.55 * PEAK, 20: 0.1 * PEAK}
    np.testing.assert_allclose([rate(step) for step in expected], list(expected.values()), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("warmup", [0, 50, 90, 95, 99])
def test_a_schedule_ends_with_the_run_after_any_warmup(schedule, warmup):
    rate = make_schedule(optimizer_config(schedule=schedule, warmup_steps=warmup), steps=100)
    expected = {warmup: PEAK, 100: 0.1 * PEAK}
    np.testing.assert_allclose([rate(step) for step in expected], list(expected.values()), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_steps_of_any_length_have_the_rates_of_a_longer_run_and_the_next_ones_have_not(schedule, warmup):
    config = optimizer_config(schedule=schedule, warmup_steps=warmup)
    short, long = make_schedule(config, 20), make_schedule(config, 40)
    same = steps_of_any_length(config, 20)
    for step in range(20):
        if step < same:
            assert short(step) == long(step), step
    assert same >= 20 or any(short(step) != long(step) for step in range(int(same), 20))


def test_weight_decay_shrinks_matrices_and_leaves_norms():
    params = {
        "blocks": {"attention_norm_D": Scale(jnp.ones(4)), "q_DNH": nnx.Param(jnp.ones((2, 2)))},
        "final_norm_D": Scale(jnp.ones(4)),
    }
    config = optimizer_config(weight_decay=0.25, warmup_steps=0)
    updates = update(config, jax.tree.map(jnp.zeros_like, params), params)
    np.testing.assert_allclose(updates["blocks"]["q_DNH"][...], -PEAK * 0.25)
    assert not updates["final_norm_D"][...].any() and not updates["blocks"]["attention_norm_D"][...].any()


def test_names_of_the_decoder_decide_as_meant():
    from anchorjax.training.optimizer import _decays
    from anchorjax.training.state import init_state
    from tests.training.making import make_mesh, make_steps, sharding

    steps = make_steps(tiny.config(model__tie_embeddings=False))
    with jax.set_mesh(make_mesh()):
        params = sharding.abstract(lambda: init_state(0, steps.spec, steps.optimizer)).params
    scales = {
        jax.tree_util.keystr(path) for path, yes in jax.tree_util.tree_leaves_with_path(_decays(params)) if not yes
    }
    by_shape = {
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if x.shape[-2:] in ((2, 32), (32,))
    }
    assert scales == by_shape and len(scales) == 3


def test_two_steps_are_those_of_adamw_written_out():
    """Two, as the first does not depend on the betas: its bias correction cancels them."""
    config = optimizer_config(weight_decay=0.1, warmup_steps=0, schedule="constant", clip_norm=0.0)
    optimizer, params = make_optimizer(config, steps=10), {"w": jnp.array([[1.0, -2.0]])}
    state = optimizer.init(params)
    w, m, v = np.float64([[1.0, -2.0]]), 0.0, 0.0
    for step, g in enumerate((np.float64([[0.3, -4.0]]), np.float64([[-0.1, 5.0]])), start=1):
        updates, state = optimizer.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        m, v = config.beta1 * m + (1 - config.beta1) * g, config.beta2 * v + (1 - config.beta2) * g**2
        m_hat, v_hat = m / (1 - config.beta1**step), v / (1 - config.beta2**step)
        w = w - PEAK * (m_hat / (np.sqrt(v_hat) + config.eps) + 0.1 * w)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)


@pytest.mark.parametrize(("clip", "scale"), [(1.0, 0.1), (20.0, 1.0), (0.0, 1.0)])
def test_clip_scales_the_whole_gradient(clip, scale):
    config = optimizer_config(clip_norm=clip, eps=1.0, warmup_steps=0, schedule="constant")
    params, grads = {"a": jnp.zeros(1), "b": jnp.zeros(1)}, {"a": jnp.array([6.0]), "b": jnp.array([8.0])}
    got = update(config, grads, params)
    for key, g in (("a", 6.0), ("b", 8.0)):
        np.testing.assert_allclose(got[key], -PEAK * scale * g / (scale * g + 1), rtol=1e-6)


def test_norm_and_clip_of_bfloat16_gradients_are_those_of_float64():
    """One large leaf and many small ones: a bfloat16 sum takes none of those that are below half a unit of it."""
    rng = np.random.default_rng(0)
    exact = {f"{i}": rng.normal(size=(300, 300) if i == 0 else (40, 40)) for i in range(51)}
    grads = {name: jnp.asarray(x, jnp.bfloat16) for name, x in exact.items()}
    exact = {name: np.asarray(x, np.float64) for name, x in grads.items()}
    length = np.sqrt(sum((x**2).sum() for x in exact.values()))
    np.testing.assert_allclose(jax.jit(norm)(grads), length, rtol=1e-6)
    assert abs(float(optax.tree.norm(grads)) / length - 1) > 1e-2, "these leaves cannot tell"

    config = optimizer_config(clip_norm=1.0, eps=1.0, beta1=0.0, beta2=0.0, warmup_steps=0, schedule="constant")
    optimizer = make_optimizer(config, steps=10)
    (_, (adam, *_)) = jax.jit(lambda grads: optimizer.update(grads, optimizer.init(grads), grads)[1])(grads)
    clipped = {name: np.asarray(x, np.float64) for name, x in adam.mu.items()}
    for name, x in exact.items():  # rounded once to 8 bits
        np.testing.assert_allclose(clipped[name], x / length, rtol=2**-8, err_msg=name)
    assert np.sqrt(sum((x**2).sum() for x in clipped.values())) == pytest.approx(1, rel=1e-4)
