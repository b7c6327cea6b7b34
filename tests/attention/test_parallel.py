"""The contract of every strategy of context parallelism on eight simulated devices, and what ulysses refuses."""

import dataclasses
import functools
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
from anchorjax.types import IMPLEMENTATIONS
from tests.attention.contract import SETTINGS, TOLERANCE, documents, make_case, max_error
from tests.training.making import make_mesh

T = 64


XLA = AttentionConfig("xla", 8, 16)


def planned(mask: Mask, strategy: str, config: AttentionConfig = XLA, **mesh: int) -> ShardedPlan:
    mesh = MeshConfig(context_strategy=strategy, **mesh)
    return jax.jit(parallel.plan, static_argnums=(1, 2))(mask, config, mesh)


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
    return out, lse, *vjp((cotangent, jnp.where(lse > NOTHING, cotangent[..., 0].astype(lse.dtype), 0.0)))


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
    "alone": ((2, 1, 1, 2), (4, 2, 8), "anchor", None, None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("strategy", parallel.STRATEGIES)
def test_output_log_sum_exp_and_gradients_equal_those_of_one_device(strategy, name):
    axes, heads, kind, window, soft_cap = CASES[name]
    case = make_case(segments_of(kind, 2), int(kind == "anchor"), *heads, window=window, soft_cap=soft_cap)
    assert error_on_mesh(case, axes, strategy) < TOLERANCE


def error_on_mesh(case, axes, strategy: str, config: AttentionConfig = XLA, **mesh: int) -> float:
    """The largest difference of output, log-sum-exp and gradients from those of one device."""
    wanted = on_one_device((case.q, case.k, case.v, case.cotangent), case.mask)
    return max_error(on_devices_of(case, axes, strategy, config, **mesh), wanted)


def on_devices_of(case, axes, strategy: str, config: AttentionConfig = XLA, **mesh: int) -> list[np.ndarray]:
    """Output, log-sum-exp and gradients of a mesh."""

    @jax.jit
    def on_devices(arrays, mask):
        plan = planned(mask, strategy, config, **mesh)
        return with_gradients(lambda *qkv: parallel.apply(*qkv, plan), *arrays)

    with jax.set_mesh(make_mesh(*axes)):
        mask = jax.tree.map(lambda x: reshard(x, sharding.BATCH), case.mask)
        found = on_devices(on_mesh(case), mask)
        assert found[0].sharding.spec == sharding.HEADS and found[1].shape == case.q.shape[:3]
    return [np.asarray(x) for x in found]


@pytest.mark.parametrize("strategy", parallel.STRATEGIES)
def test_bfloat16_is_hardly_worse_on_eight_devices_than_on_one(strategy):
    """Errors against fp32 products of the same numbers."""
    case = make_case(segments_of("anchor", 2), 1, 8, 2, 16, dtype="bfloat16")
    arrays = case.q, case.k, case.v, case.cotangent
    exact = on_one_device([x.astype(jnp.float32) for x in arrays], case.mask)
    one, many = (on_devices_of(case, (1, 1, context, 1), strategy) for context in (1, 8))
    for name, *results in zip(("out", "lse", "dq", "dk", "dv"), exact, one, many, strict=True):
        wanted, alone, found = (np.asarray(x, np.float64) for x in results)
        error, alone_error = (np.sqrt(np.mean((x - wanted) ** 2)) for x in (found, alone))
        assert error < 2 * alone_error + 1e-6, name


@pytest.mark.parametrize(
    ("heads", "chunks"), [((8, 2, 8), 2), ((8, 2, 8), 4), ((8, 8, 8), 2), ((12, 2, 8), 3), ((8, 4, 8), 4)]
)
def test_ulysses_in_chunks_of_heads(heads, chunks):
    case = make_case(segments_of("anchor", 2), 1, *heads, window=20, soft_cap=3.0)
    assert error_on_mesh(case, (1, 1, 2, 1), "ulysses", ulysses_head_chunks=chunks) < TOLERANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ring_merges_results_of_every_implementation(implementation, monkeypatch):
    setting = SETTINGS[implementation]
    if implementation.startswith("pallas"):  # interpreted kernels do not know over which axes an array varies
        monkeypatch.setattr(jax, "shard_map", functools.partial(jax.shard_map, check_vma=False))
    T = 2 * max(setting.tiles)
    case = make_case(documents(T, [T // 8], 1)[None], 1, 2, 1, 16, soft_cap=2.0)
    # Each device needs keys of the other: the interpreter of TPU kernels waits until all devices call a kernel.
    zigzag = np.arange(T).reshape(4, -1)[[0, 3, 1, 2]].ravel()
    case = dataclasses.replace(case, mask=jax.tree.map(lambda x: x[:, zigzag], case.mask))
    config = AttentionConfig(implementation, *setting.tiles)
    with setting.interpreted():
        assert error_on_mesh(case, (1, 1, 2, 1), "ring", config) < TOLERANCE


def sends_of(segments, context: int, order=None) -> tuple[int, int]:
    """Pieces that each device of a ring sends, and the steps in which it attends to what comes."""
    segments = segments if order is None else segments[:, order]
    mask = Mask.from_segments(jnp.asarray(segments, jnp.int32), 1)
    if order is not None:
        index = jnp.broadcast_to(jnp.asarray(order, jnp.int32), segments.shape)
        mask = dataclasses.replace(mask, q_index_BT=index, kv_index_BS=index)
    with jax.set_mesh(make_mesh(1, 1, context, 1)):
        plan = planned(jax.tree.map(lambda x: reshard(x, sharding.BATCH), mask), "ring")
    return int(plan.shared.count), int(np.asarray(plan.local.any_live_C)[:, 1:].sum())


def test_ring_sends_what_a_document_needs_and_nothing_for_the_anchor():
    """Shards of 16 tokens in 8 pieces of 2."""
    assert sends_of(documents(T, [16, 32, 48], 1)[None], 4) == (0, 0)
    short = documents(T, [15, 17, 31, 33, 47, 49], 1)[None]
    assert sends_of(short, 4) == (1, 3)  # a document of two tokens lies over each end of a shard
    whole, half = np.ones((1, T), int), np.where(np.arange(T) < 40, 1, 2)[None]
    whole[:, 0] = half[:, 0] = 0
    assert sends_of(whole, 4) == (3 * 8, 1 + 2 + 3)
    assert sends_of(half, 4) == (2 * 8, 1 + 2 + 1)
    backwards = np.arange(T).reshape(4, 16)[::-1].ravel()
    assert sends_of(whole, 4, backwards) == (3 * 8, 1 + 2 + 3)
    assert sends_of(np.arange(T)[None], 8) == (0, 0)


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


COLLECTIVES = {"all_gather": {"all-gather"}, "ulysses": {"all-to-all"}, "ring": {"collective-permute"}}


@pytest.mark.parametrize("strategy", COLLECTIVES)
def test_compiled_collectives(strategy):
    """The forward pass moves floating-point arrays by the strategy's own collective and by no other."""
    with jax.set_mesh(make_mesh(1, 1, 4, 1)):
        mask = Mask.from_segments(reshard(jnp.ones((1, T), jnp.int32), sharding.BATCH), 0)
        plan = planned(mask, strategy)
        q, k, v = (reshard(jnp.ones((1, T, heads, 8)), sharding.HEADS) for heads in (8, 4, 4))
        text = jax.jit(lambda *qkv: parallel.apply(*qkv, plan)).lower(q, k, v).compile().as_text()
    found = {
        name
        for kind, name in re.findall(r"= (.*?) (all-gather|all-to-all|collective-permute)\(", text)
        if "f32" in kind
    }
    assert found == COLLECTIVES[strategy]


def test_ulysses_refuses_heads_that_do_not_split(tiny_config):
    model = tiny_config(model__num_heads=6, model__num_kv_heads=2).model
    check = parallel.STRATEGIES["ulysses"].check
    mesh = MeshConfig(context_strategy="ulysses")
    check(model, mesh, {"context": 3, "tensor": 2})
    check(model, mesh, {"context": 6, "tensor": 1})
    with pytest.raises(ConfigError, match=r"mesh.context=2 is not allowed: .* takes a divisor of .* mesh.tensor = 3"):
        check(model, mesh, {"context": 2, "tensor": 2})
    mesh = MeshConfig(context_strategy="ulysses", ulysses_head_chunks=3)
    check(model, mesh, {"context": 2, "tensor": 1})
    with pytest.raises(ConfigError, match=r"mesh.ulysses_head_chunks=3 is not allowed: it must divide .* = 1"):
        check(model, mesh, {"context": 3, "tensor": 2})
    for name in ("all_gather", "ring"):
        parallel.STRATEGIES[name].check(model, mesh, {"context": 4, "tensor": 2})
