"""The GPU kernels, interpreted, against the reference: what is their own, beside the contract they share.

Interpretation runs a kernel's statements and pads what lies outside of arrays with not-a-number; it knows
nothing of warps and registers. test_gpu_compiles.py and tests/benchmarks/test_gpu_static.py have the compilers' part.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.attention import attention, attention_with_lse, pallas_gpu
from anchorjax.attention import plan as plan_lib
from anchorjax.attention.anchors import NOTHING
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask
from tests.attention.contract import Case, layouts, make_case

T = 83  # a prime: no tile divides it
TOLERANCE = 2e-5


@functools.partial(jax.jit, static_argnames=("implementation", "tiles"))
def forward_and_vjp(q, k, v, cotangent, mask, implementation, tiles):
    apply = functools.partial(
        attention_with_lse, mask=mask, plan=make_plan(mask, *tiles), implementation=implementation
    )
    (out, lse), vjp = jax.vjp(apply, q, k, v)
    return out, lse, *vjp((cotangent, jnp.where(lse > NOTHING, cotangent[..., 0].astype(jnp.float32), 0.0)))


def run(case: Case, implementation: str, tiles=(32, 16)):
    return forward_and_vjp(case.q, case.k, case.v, case.cotangent, case.mask, implementation, tiles)


def run_kernels(case: Case, tiles=(32, 16)):
    with pallas_gpu.interpreted():
        return run(case, "pallas_gpu", tiles)


def max_error(got, wanted) -> float:
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(got, wanted, strict=True))


def contiguous(T: int, cuts: list[int], anchors: int, pads: int = 0) -> np.ndarray:
    segments = 1 + np.searchsorted(sorted(cuts), np.arange(T), side="right")
    segments[:anchors] = 0
    segments[T - pads :] = -1
    return segments


@settings(max_examples=15, deadline=None)
@given(layout=layouts(T), seed=st.integers(0, 1000))
def test_equals_reference(layout, seed):
    case = make_case(*layout, 4, 2, 16, seed=seed, window=20, soft_cap=3.0)
    assert max_error(run_kernels(case), run(case, "reference")) < TOLERANCE


@pytest.mark.parametrize(
    ("heads", "anchors", "window", "soft_cap", "tiles"),
    [
        ((4, 2, 64), 1, None, None, (128, 128)),  # a tile is several blocks of every kernel
        ((1, 1, 80), 2, 70, None, (16, 64)),
        ((3, 1, 96), 3, None, 2.0, (64, 16)),
        ((2, 1, 128), 0, 90, 3.0, (32, 128)),
        ((2, 2, 256), 17, None, None, (32, 32)),  # more anchors than fit one matmul's smallest side
    ],
    ids=str,
)
def test_windows_caps_anchors_widths_and_tiles(heads, anchors, window, soft_cap, tiles):
    length = 150
    segments = np.stack([contiguous(length, [60, 70], anchors), contiguous(length, [90], anchors, pads=40)])
    case = make_case(segments, anchors, *heads, window=window, soft_cap=soft_cap)
    assert max_error(run_kernels(case, tiles), run(case, "reference")) < TOLERANCE


def test_lists_in_chunks(monkeypatch):
    """Starts are places in the flattened list, whose chunks end in entries that mean nothing."""
    monkeypatch.setattr(plan_lib, "_CHUNK", 8)
    jax.clear_caches()
    case = make_case(np.stack([contiguous(T, [40], 1), contiguous(T, [], 1)]), 1, 2, 1, 16)
    plan = make_plan(case.mask, 32, 16)
    assert plan.by_query.entries_CP.shape[0] > 2 and plan.by_key.entries_CP.shape[0] > 2
    assert max_error(run_kernels(case), run(case, "reference")) < TOLERANCE
    jax.clear_caches()


def test_keys_may_come_in_any_order_and_be_more_than_queries():
    case = make_case(contiguous(T, [30, 60], 1)[None], 1, 4, 2, 16)
    order, part = jnp.array(np.random.default_rng(4).permutation(T)), slice(40, 70)
    segments, index = case.mask.q_segment_ids_BT, case.mask.q_index_BT
    mask = Mask(segments[:, part], segments[:, order], index[:, part], index[:, order], 1)
    shard = Case(case.q[:, part], case.k[:, order], case.v[:, order], case.cotangent[:, part], mask)
    assert max_error(run_kernels(shard), run(shard, "reference")) < TOLERANCE


def test_dead_tiles_are_not_visited_and_runs_are_alike():
    segments = np.repeat([1, 2], [32, 64])[None]
    segments[:, 0] = 0
    case = make_case(segments, 1, 4, 2, 16)
    first, second = slice(1, 32), slice(32, 96)
    nan = lambda x: x.at[:, second].set(jnp.nan)  # noqa: E731
    out, _, dq, _, _ = run_kernels(Case(case.q, nan(case.k), nan(case.v), case.cotangent, case.mask))
    _, _, _, dk, dv = run_kernels(Case(nan(case.q), case.k, case.v, nan(case.cotangent), case.mask))
    for got in (out, dq, dk, dv):
        assert bool(jnp.isfinite(got[:, first]).all()) and bool(jnp.isnan(got[:, second]).any())
    for one, again in zip(run_kernels(case), run_kernels(case), strict=True):
        np.testing.assert_array_equal(one, again)


def test_rows_without_keys_are_exact_zeros():
    segments = np.stack([np.full(T, -1), contiguous(T, [30], 1, pads=20)])
    out, lse, *gradients = run_kernels(make_case(segments, 1, 4, 2, 16))
    for x in (out, *gradients):
        assert bool(jnp.all(x[0] == 0)) and bool(jnp.all(x[1, -20:] == 0)) and bool(jnp.any(x[1, :-20] != 0))
    assert bool(jnp.all(lse[0] == NOTHING)) and bool(jnp.all(lse[1, -20:] == NOTHING))


def test_bfloat16_is_not_worse_than_a_dense_computation():
    """Errors against fp32 of the same numbers; the dense one rounds where the kernels do, its sums go over all keys."""
    case = make_case(np.stack([contiguous(T, [40], 1), contiguous(T, [20, 50], 1)]), 1, 2, 1, 64, dtype="bfloat16")
    widened = Case(*(x.astype(jnp.float32) for x in (case.q, case.k, case.v, case.cotangent)), case.mask)
    exact, allowed_BTS = run(widened, "reference"), case.mask.materialize()

    @jax.jit
    def dense(q, k, v, do):
        einsum = lambda subscripts, *xy: jnp.einsum(subscripts, *(x.astype(jnp.float32) for x in xy))  # noqa: E731
        k, v = k[:, :, 0], v[:, :, 0]
        s = jnp.where(allowed_BTS[:, None], einsum("btnh,bsh->bnts", q, k) / 8, -jnp.inf)
        p, dp = jax.nn.softmax(s, -1), einsum("btnh,bsh->bnts", do, v)
        out = einsum("bnts,bsh->btnh", p.astype(jnp.bfloat16), v).astype(jnp.bfloat16)
        dlse = jnp.moveaxis(do[..., 0], 2, 1).astype(jnp.float32)
        # As in FlashAttention-2, sum(p * dp) comes from the rounded output.
        ds = p * (dp - einsum("btnh,btnh->bnt", do, out)[..., None] + dlse[..., None]) / 8
        p, ds = p.astype(jnp.bfloat16), ds.astype(jnp.bfloat16)
        dq, dk, dv = einsum("bnts,bsh->btnh", ds, k), einsum("bnts,btnh->bsh", ds, q), einsum("bnts,btnh->bsh", p, do)
        return out, *(x.astype(jnp.bfloat16) for x in (dq, dk[:, :, None], dv[:, :, None]))

    def errors(results):
        wanted = [exact[0], *exact[2:]]
        pairs = zip(results, wanted, strict=True)
        return [float(jnp.sqrt(jnp.mean((x.astype(jnp.float32) - y) ** 2))) for x, y in pairs]

    out, lse, *gradients = run_kernels(case)
    assert max_error([lse], [exact[1]]) < 2e-6
    plain = errors(dense(case.q, case.k, case.v, case.cotangent))
    for name, ours, theirs in zip(("out", "dq", "dk", "dv"), errors([out, *gradients]), plain, strict=True):
        assert ours <= theirs, (name, ours, theirs)


def test_nothing_falls_back_silently():
    case = make_case(np.zeros((1, T)), 0, 2, 1, 16)
    for tiles in ((100, 128), (16, 8)):
        plan = make_plan(case.mask, *tiles)
        with pytest.raises(NotImplementedError, match=f"tiles of {tiles[0]} x {tiles[1]}; allowed: powers of two"):
            attention(case.q, case.k, case.v, case.mask, plan=plan, implementation="pallas_gpu")
    wide = make_case(np.zeros((1, T)), 0, 2, 1, 272)
    with pytest.raises(NotImplementedError, match=r"q has shape \(1, 83, 2, 272\); allowed: heads of 1 to 256"):
        attention(wide.q, wide.k, wide.v, wide.mask, plan=make_plan(wide.mask, 16, 16), implementation="pallas_gpu")
    run_kernels(case)  # what is compiled inside `interpreted` is not what runs outside of it
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        run(case, "pallas_gpu")
