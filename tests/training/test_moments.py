"""Moments in bfloat16 and on the host: what is rounded how, where it rests, and that runs go on from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from anchorjax import sharding
from anchorjax.checkpoints.orbax import Checkpoints
from anchorjax.errors import ConfigError, WorkdirError
from anchorjax.models.linear import named_leaves
from anchorjax.training import moments
from anchorjax.training.state import init_state
from anchorjax.training.workdir import Workdir
from tests import tiny
from tests.training.making import assert_trees_close, make_batch, make_mesh, make_state, make_steps

HOST, NARROW = {"optimizer__moments_on": "host"}, {"optimizer__moments_dtype": "bfloat16"}
LORA = {"lora__rank": 2, "lora__targets": ("q", "down")}


def optimizer_config(**changes):
    return tiny.config(**{f"optimizer__{key}": value for key, value in changes.items()}).optimizer


def of_moments(state) -> dict[str, jax.Array]:
    """The moments of a TrainState by name."""
    return {name: x for name, x in named_leaves(state.opt_state).items() if ".mu." in name or ".nu." in name}


@functools.cache
def trained(sizes: tuple[int, ...], steps: int, **changes):
    """(losses, state) of some steps on the same batch, with a donated state."""
    mesh, made = make_mesh(*sizes), make_steps(tiny.config(**changes))
    with jax.set_mesh(mesh):
        state, batch = make_state(made), sharding.shard_batch(make_batch(4, 64), mesh)
        train, losses = jax.jit(made.train, donate_argnums=0), []
        for _ in range(steps):
            before = state
            state, metrics = train(state, batch)
            losses.append(float(metrics["loss"]))
    assert all(x.is_deleted() for x in jax.tree.leaves((before.params, before.opt_state)) if x.ndim)
    return losses, state


@pytest.mark.parametrize("beta2", [0.95, 0.999])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moments_follow_their_exact_mean(beta2, dtype):
    """After one large gradient of 100 come 400 of 1. Rounded to the nearest with beta2 = 0.999, v would stay at 10."""
    config = optimizer_config(moments_dtype=dtype, beta2=beta2)
    adam, params = moments.scale_by_adam(config), {"w": jnp.zeros(512)}
    update, state, exact = jax.jit(adam.update), adam.init(params), 0.0
    for step in range(401):
        g = 100.0 if step == 0 else 1.0
        exact = beta2 * exact + (1 - beta2) * g**2
        _, state = update({"w": jnp.full(512, g)}, state)
    assert state.mu["w"].dtype == state.nu["w"].dtype == dtype
    v = np.asarray(state.nu["w"], np.float64)
    np.testing.assert_allclose(v.mean(), exact, rtol=2e-2 if dtype == "bfloat16" else 1e-4)
    np.testing.assert_allclose(v, exact, rtol=0.5 if dtype == "bfloat16" else 1e-4)
    np.testing.assert_allclose(np.asarray(state.mu["w"], np.float64).mean(), 1.0, rtol=2e-3)


def test_rounding_takes_a_neighbour_and_keeps_the_mean():
    x = jnp.float32([1.0, 1.001, -3.003, 1e-30, 65504.0, 0.0])
    noise = jnp.arange(2**16, dtype=jnp.uint32)[:, None]
    values = np.asarray(moments.rounded(x, noise), np.float64)
    np.testing.assert_array_equal(values, values.astype(jnp.bfloat16).astype(np.float64))
    assert all(len(np.unique(column)) <= 2 for column in values.T)
    np.testing.assert_allclose(values.mean(0), np.asarray(x, np.float64), rtol=1e-7)


def test_rounding_keeps_what_is_no_number():
    """NaN of a GPU and of a CPU, and infinities, with all noise: 0x7FFFFFFF + 1 would be -0.0."""
    x = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
    for noise in (0, 1, 0xFFFF):
        np.testing.assert_array_equal(moments.rounded(jnp.asarray(x), jnp.uint32(noise)), x)


def test_in_fp32_updates_are_those_of_optax():
    config, plain = optimizer_config(moments_dtype="float32"), optimizer_config()
    ours, theirs = moments.scale_by_adam(config), optax.scale_by_adam(plain.beta1, plain.beta2, plain.eps)
    params = {"blocks": {"w": jnp.zeros((3, 4, 5))}, "other": jnp.zeros(7)}
    states = [ours.init(params), theirs.init(params)]
    for key in jax.random.split(jax.random.key(0), 3):
        gradient = jax.tree.map(lambda x, key=key: jax.random.normal(key, x.shape), params)
        (got, states[0]), (wanted, states[1]) = (
            jax.jit(each.update)(gradient, state) for each, state in zip((ours, theirs), states, strict=True)
        )
        assert_trees_close(got, wanted, rtol=1e-6)
        assert_trees_close(states[0], states[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "changes"), [((1, 1, 1, 1), NARROW | LORA), ((1, 2, 2, 2), NARROW)], ids=["lora", "mesh"]
)
def test_the_memory_changes_nothing(sizes, changes):
    """Bit for bit, and it stays where it is from the first step on."""
    changes = {"data__batch_size": 4} | changes
    losses, state = trained(sizes, 3, **changes)
    on_host_losses, on_host = trained(sizes, 3, **changes, **HOST)
    assert on_host_losses == losses
    assert {x.sharding.memory_kind for x in of_moments(state).values()} == {"device"}
    assert {x.sharding.memory_kind for x in of_moments(on_host).values()} == {sharding.HOST}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(on_host.params)} == {"device"}
    for name, x in named_leaves(on_host.opt_state).items():
        np.testing.assert_array_equal(x, named_leaves(state.opt_state)[name], err_msg=name)


def test_training_with_bfloat16_moments_follows_that_with_fp32():
    wide, narrow = (trained((1, 1, 1, 1), 30, data__batch_size=4, **changes)[0] for changes in ({}, NARROW))
    assert wide[0] == narrow[0] and wide[-1] < wide[0] - 1
    np.testing.assert_allclose(narrow, wide, rtol=2e-2)


@pytest.mark.parametrize("saved", [NARROW, NARROW | HOST], ids=["device", "host"])
@pytest.mark.parametrize("resumed", [NARROW, NARROW | HOST], ids=["device", "host"])
def test_a_checkpoint_comes_back_into_either_memory_bit_for_bit(saved, resumed, tmp_path):
    sizes = (1, 2, 2, 2)
    _, state = trained(sizes, 3, data__batch_size=4, **saved)
    with jax.set_mesh(make_mesh(*sizes)):
        checkpoints = Checkpoints(tmp_path, keep=1)
        checkpoints.save(3, state, {}, None)
        checkpoints.close()
        steps = make_steps(tiny.config(data__batch_size=4, **resumed))
        like = sharding.abstract(lambda: init_state(0, steps.spec, steps.optimizer))
        restored, _ = Checkpoints(tmp_path, keep=1, read_only=True).restore_latest(like)
    wanted = sharding.HOST if HOST.items() <= resumed.items() else "device"
    assert {x.sharding.memory_kind for x in of_moments(restored).values()} == {wanted}
    for name, x in of_moments(restored).items():
        assert x.dtype == jnp.bfloat16
        np.testing.assert_array_equal(x, of_moments(state)[name], err_msg=name)


def test_another_dtype_is_refused_when_a_run_is_resumed(tmp_path):
    with Workdir(tmp_path).open(tiny.config()).begin():
        (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(WorkdirError, match=r"optimizer.moments_dtype: 'weights' -> 'bfloat16'"):
        Workdir(tmp_path).open(tiny.config(**NARROW))


def test_moments_of_bfloat16_weights_on_the_host_have_a_dtype_of_their_own():
    """With "weights" they would be rounded to the nearest on the device, and stochastically here."""
    narrow = {"model__param_dtype": "bfloat16", **HOST}
    with pytest.raises(ConfigError, match=r"moments_dtype='weights' is not allowed: .* must be float32 or bfloat16"):
        tiny.config(**narrow)
    tiny.config(**narrow, optimizer__moments_dtype="float32")
