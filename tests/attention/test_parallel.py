"""The contract of every strategy of context parallelism on eight simulated devices, and what ulysses refuses."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import reshard

from anchorjax import sharding
from anchorjax.attention import attention_with_lse, leakage, parallel
from anchorjax.attention.anchors import NOTHING
from anchorjax.attention.per_device import ShardedPlan
from anchorjax.config import AttentionConfig, MeshConfig
from anchorjax.errors import ConfigError
from anchorjax.masks import Mask
from tests.attention.contract import TOLERANCE, documents, make_case, max_error
from tests.training.making import make_batch, make_mesh, make_state, make_steps

T = 64


def planned(mask: Mask, strategy: str, implementation: str = "xla") -> ShardedPlan:
    config = AttentionConfig(implementation, 8, 16)
    return jax.jit(parallel.plan, static_argnums=(1, 2))(mask, config, MeshConfig(context_strategy=strategy))


def segments_of(kind: str, rows: int) -> np.ndarray:
    """Segment ids [rows, T]: documents in one piece or interleaved; every second row ends in padding."""
    anchors = int(kind == "anchor")
    row = np.zeros(T, int) if kind == "full" else documents(T, [9, 30, 41], anchors)
    interleaved = np.where(np.arange(T) < anchors, 0, 1 + np.arange(T) // 3 % 2)
    table = np.stack([row if b % 2 == 0 or kind == "full" else interleaved for b in range(rows)])
    table[::2, -11:] = -1
    return table


def on_mesh(case):
    """The case's arrays, sharded over the current mesh."""
    return [reshard(x, sharding.HEADS) for x in (case.q, case.k, case.v, case.cotangent)]


def with_gradients(attend, q, k, v, cotangent):
    """(out, lse, dq, dk, dv) for a cotangent of the output and one of the log-sum-exp."""
    (out, lse), vjp = jax.vjp(attend, q, k, v)
    return out, lse, *vjp((cotangent, jnp.where(lse > NOTHING, cotangent[..., 0], 0.0)))


@jax.jit
def on_one_device(case_arrays, mask):
    return with_gradients(lambda *qkv: attention_with_lse(*qkv, mask, implementation="reference"), *case_arrays)


# Axes (data, fsdp, context, tensor), heads (N, K, H), mask, window, softcap. Each name says how many key heads a device
# along tensor has: as many as there are devices along context, more, fewer, or a number that they do not divide.
CASES = {
    "equal": ((1, 1, 2, 1), (4, 2, 8), "anchor", None, None),
    "more": ((2, 1, 2, 2), (8, 8, 8), "anchor", 7, None),
    "fewer": ((1, 2, 4, 1), (8, 2, 8), "intra_doc", None, 2.0),
    "fewer and tensor": ((1, 1, 4, 2), (8, 2, 8), "anchor", 20, 3.0),
    "one": ((1, 1, 8, 1), (8, 1, 8), "full", None, None),
    "uneven": ((2, 1, 4, 1), (12, 6, 8), "anchor", None, None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("strategy", parallel.STRATEGIES)
def test_output_log_sum_exp_and_gradients_equal_those_of_one_device(strategy, name):
    axes, heads, kind, window, soft_cap = CASES[name]
    case = make_case(segments_of(kind, 2), int(kind == "anchor"), *heads, window=window, soft_cap=soft_cap)
    wanted = on_one_device((case.q, case.k, case.v, case.cotangent), case.mask)

    @jax.jit
    def on_devices(arrays, segments_BT):
        mask = Mask.from_segments(segments_BT, case.mask.num_anchors, window, soft_cap)
        plan = planned(mask, strategy)
        return with_gradients(lambda *qkv: parallel.apply(*qkv, plan), *arrays)

    with jax.set_mesh(make_mesh(*axes)):
        found = on_devices(on_mesh(case), reshard(case.mask.q_segment_ids_BT, sharding.BATCH))
        assert found[0].sharding.spec == sharding.HEADS and found[1].shape == (2, T, heads[0])
    assert max_error([np.asarray(x) for x in found], wanted) < TOLERANCE


@pytest.mark.parametrize("strategy", parallel.STRATEGIES)
def test_visibility_follows_the_index_and_not_the_device(strategy):
    """Tokens that are shuffled over the devices get the outputs that they have in order."""
    case = make_case(segments_of("anchor", 2), 1, 4, 2, 8)
    order = np.random.default_rng(0).permutation(T)
    wanted = attention_with_lse(case.q, case.k, case.v, case.mask, implementation="reference")
    with jax.set_mesh(make_mesh(1, 1, 4, 1)):
        mask = jax.tree.map(lambda x: reshard(x[:, order], sharding.BATCH), case.mask)
        q, k, v = (reshard(x[:, order], sharding.HEADS) for x in (case.q, case.k, case.v))
        out, lse = jax.jit(lambda *qkv: parallel.apply(*qkv, planned(mask, strategy)))(q, k, v)
    assert max_error((np.asarray(out), np.asarray(lse)), [x[:, order] for x in wanted]) < TOLERANCE


@pytest.mark.parametrize("strategy", parallel.STRATEGIES)
def test_nothing_leaks(strategy):
    segments = segments_of("anchor", 2)
    with jax.set_mesh(make_mesh(1, 2, 4, 1)):
        mask = Mask.from_segments(reshard(jnp.asarray(segments, jnp.int32), sharding.BATCH), 1)
        plan = planned(mask, strategy)
        attend = jax.jit(lambda q, k, v, plan: parallel.apply(q, k, v, plan)[0])
        arrays = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "sharding": sharding.HEADS}
        tokens = leakage.probe_tokens(segments)[::3]
        leakage.check(leakage.probe(attend, plan, tokens, **arrays))
        leakage.check(leakage.probe_gradients(attend, plan, tokens[-2:], **arrays))
        blind = planned(dataclasses.replace(mask, num_anchors=0), strategy)
        forgetful = jax.jit(lambda q, k, v, _: parallel.apply(q, k, v, blind)[0])
        findings = leakage.probe(forgetful, plan, [(0, 0)], **arrays)
    assert len(findings[0].blind) > 10


def step_of(strategy: str, tiny_config):
    config = tiny_config(
        attention__implementation="xla", mesh__context_strategy=strategy, data__batch_size=2, train__steps=4
    )
    steps, mesh = make_steps(config), make_mesh(1, 2, 2)
    with jax.set_mesh(mesh):
        state, metrics = jax.jit(steps.train)(make_state(steps), sharding.shard_batch(make_batch(2, T), mesh))
        return metrics, jax.tree.map(np.asarray, jax.tree.leaves(state.params))


@pytest.fixture(scope="module")
def step_of_all_gather(tiny_config):
    return step_of("all_gather", tiny_config)


@pytest.mark.parametrize("strategy", [name for name in parallel.STRATEGIES if name != "all_gather"])
def test_a_training_step_is_that_of_all_gather(strategy, step_of_all_gather, tiny_config):
    """Equal to rounding: the strategies add the gradients of keys and values in different orders."""
    (wanted_metrics, wanted), (metrics, found) = step_of_all_gather, step_of(strategy, tiny_config)
    assert float(metrics["loss"]) == pytest.approx(float(wanted_metrics["loss"]), rel=1e-6)
    assert float(metrics["grad_norm"]) == pytest.approx(float(wanted_metrics["grad_norm"]), rel=1e-5)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


COLLECTIVES = {"all_gather": {"all-gather"}, "ulysses": {"all-to-all"}}


@pytest.mark.parametrize("strategy", COLLECTIVES)
def test_compiled_collectives(strategy):
    """The forward pass moves floating-point arrays by the strategy's own collective and by no other."""
    with jax.set_mesh(make_mesh(1, 1, 4, 1)):
        mask = Mask.from_segments(reshard(jnp.ones((1, T), jnp.int32), sharding.BATCH), 0)
        plan = planned(mask, strategy)
        q, k, v = (reshard(jnp.ones((1, T, heads, 8)), sharding.HEADS) for heads in (8, 4, 4))
        text = jax.jit(lambda *qkv: parallel.apply(*qkv, plan)).lower(q, k, v).compile().as_text()
    found = {name for kind, name in re.findall(r"= (.*?) (all-gather|all-to-all)\(", text) if "f32" in kind}
    assert found == COLLECTIVES[strategy]


def test_ulysses_refuses_heads_that_do_not_split(tiny_config):
    model = tiny_config(model__num_heads=6, model__num_kv_heads=2).model
    check = parallel.STRATEGIES["ulysses"].check
    check(model, {"context": 3, "tensor": 2})
    check(model, {"context": 6, "tensor": 1})
    with pytest.raises(ConfigError, match=r"mesh.context=2 is not allowed: .* takes a divisor of .* mesh.tensor = 3"):
        check(model, {"context": 2, "tensor": 2})
    parallel.STRATEGIES["all_gather"].check(model, {"context": 4, "tensor": 2})
