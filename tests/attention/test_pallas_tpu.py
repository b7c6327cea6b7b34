"""The TPU kernels, interpreted with their memories and copies, against the reference: forward, VJP, log-sum-exp.

`pltpu.force_tpu_interpret_mode` models aliased outputs, semaphores and uninitialised memory (not-a-number);
plain `interpret=True` does not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from anchorjax.attention import attention, attention_with_lse
from anchorjax.attention import plan as plan_lib
from anchorjax.attention.anchors import NOTHING
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask
from tests.attention.contract import Case, make_case

T = 300  # three tiles of 128, the last part empty
TOLERANCE = 2e-5


@functools.partial(jax.jit, static_argnames=("implementation", "tiles"))
def forward_and_vjp(q, k, v, cotangent, mask, implementation, tiles):
    apply = functools.partial(
        attention_with_lse, mask=mask, plan=make_plan(mask, *tiles), implementation=implementation
    )
    (out, lse), vjp = jax.vjp(apply, q, k, v)
    return out, lse, *vjp((cotangent, jnp.where(lse > NOTHING, cotangent[..., 0].astype(jnp.float32), 0.0)))


def run(case: Case, implementation: str, tiles=(128, 128)):
    return forward_and_vjp(case.q, case.k, case.v, case.cotangent, case.mask, implementation, tiles)


def run_kernels(case: Case, tiles=(128, 128)):
    with pltpu.force_tpu_interpret_mode():
        return run(case, "pallas_tpu", tiles)


def max_error(got, wanted) -> float:
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(got, wanted, strict=True))


def contiguous(cuts: list[int], anchors: int, pads: int = 0) -> np.ndarray:
    segments = 1 + np.searchsorted(sorted(cuts), np.arange(T), side="right")
    segments[:anchors] = 0
    segments[T - pads :] = -1
    return segments


@settings(max_examples=5, deadline=None)
@given(
    st.lists(st.integers(2, T - 1), max_size=6),
    st.integers(0, 200),
    st.sampled_from(["contiguous", "interleaved", "dead"]),
    st.integers(0, 1000),
)
def test_equals_reference(cuts, pads, second_row, seed):
    """Two query heads a key head, one anchor; rows of a batch differ."""
    other = {
        "contiguous": contiguous([50, 131], 1),
        "interleaved": np.r_[0, np.arange(1, T) // 37 % 3],
        "dead": np.full(T, -1),
    }[second_row]
    case = make_case(np.stack([contiguous(cuts, 1, pads), other]), 1, 2, 1, 16, seed=seed)
    assert max_error(run_kernels(case), run(case, "reference")) < TOLERANCE


@pytest.mark.parametrize(
    ("heads", "anchors", "window", "soft_cap", "tiles"),
    [
        ((1, 1, 64), 0, None, None, (128, 256)),  # one query head: its dq tile comes back at once
        ((1, 1, 80), 2, 70, None, (256, 128)),
        ((3, 1, 96), 1, None, 2.0, (128, 128)),
        ((2, 2, 256), 3, 140, 3.0, (128, 128)),
    ],
    ids=str,
)
def test_windows_caps_anchors_widths_and_tiles(heads, anchors, window, soft_cap, tiles):
    segments = np.stack([contiguous([140, 150], anchors), contiguous([200], anchors, pads=60)])
    case = make_case(segments, anchors, *heads, window=window, soft_cap=soft_cap)
    assert max_error(run_kernels(case, tiles), run(case, "reference")) < 2 * TOLERANCE


def test_list_in_chunks(monkeypatch):
    """A chunk of three entries is one query tile: as many kernel calls as tiles."""
    monkeypatch.setattr(plan_lib, "_CHUNK", 3)
    jax.clear_caches()
    case = make_case(np.stack([contiguous([140], 1), contiguous([], 1)]), 1, 2, 1, 16)
    assert make_plan(case.mask, 128, 128).by_query.entries_CP.shape[0] == 6
    assert max_error(run_kernels(case), run(case, "reference")) < TOLERANCE
    jax.clear_caches()


def test_keys_may_come_in_any_order_and_queries_be_a_part():
    case = make_case(contiguous([90, 200], 1)[None], 1, 2, 1, 16)
    order, part = jnp.array(np.random.default_rng(4).permutation(T)), slice(120, 260)
    segments, index = case.mask.q_segment_ids_BT, case.mask.q_index_BT
    mask = Mask(segments[:, part], segments[:, order], index[:, part], index[:, order], 1)
    shard = Case(case.q[:, part], case.k[:, order], case.v[:, order], case.cotangent[:, part], mask)
    assert max_error(run_kernels(shard), run(shard, "reference")) < TOLERANCE


def test_dead_tiles_are_not_visited_and_runs_are_alike():
    segments = np.repeat([1, 2], [128, 256])[None]
    segments[:, 0] = 0
    case = make_case(segments, 1, 2, 1, 16)
    first, second = slice(1, 128), slice(128, 384)
    nan = lambda x: x.at[:, second].set(jnp.nan)  # noqa: E731
    out, _, dq, _, _ = run_kernels(Case(case.q, nan(case.k), nan(case.v), case.cotangent, case.mask))
    _, _, _, dk, dv = run_kernels(Case(nan(case.q), case.k, case.v, nan(case.cotangent), case.mask))
    for got in (out, dq, dk, dv):
        assert bool(jnp.isfinite(got[:, first]).all()) and bool(jnp.isnan(got[:, second]).any())
    for one, again in zip(run_kernels(case), run_kernels(case), strict=True):
        np.testing.assert_array_equal(one, again)


def test_bfloat16_is_not_worse_than_a_dense_computation():
    case = make_case(np.stack([contiguous([140], 1), contiguous([90, 200], 1)]), 1, 2, 1, 64, dtype="bfloat16")
    exact = run(
        Case(*(x.astype(jnp.float32) for x in (case.q, case.k, case.v, case.cotangent)), case.mask), "reference"
    )
    allowed_BTS = case.mask.materialize()

    @jax.jit
    def dense(q, k, v, do):
        """Matmuls of bf16 arrays with fp32 sums, as a TPU does them; softmax in fp32.

        Its gradient takes sum(p * dp) from the rounded output, as FlashAttention-2 does. Summed in fp32 over the
        keys instead, which takes all of them at once, dq is more exact by a third than the kernels'.
        """
        einsum = lambda subscripts, *xy: jnp.einsum(subscripts, *(x.astype(jnp.float32) for x in xy))  # noqa: E731
        k, v = k[:, :, 0], v[:, :, 0]
        s = jnp.where(allowed_BTS[:, None], einsum("btnh,bsh->bnts", q, k) / 8, -jnp.inf)
        p, lse = jax.nn.softmax(s, -1), jax.nn.logsumexp(s, -1)
        dp = einsum("btnh,bsh->bnts", do, v)
        dlse = jnp.moveaxis(do[..., 0], 2, 1).astype(jnp.float32)
        out = einsum("bnts,bsh->btnh", p.astype(jnp.bfloat16), v).astype(jnp.bfloat16)
        ds = p * (dp - einsum("btnh,btnh->bnt", do, out)[..., None] + dlse[..., None]) / 8
        p, ds = p.astype(jnp.bfloat16), ds.astype(jnp.bfloat16)
        grads = einsum("bnts,bsh->btnh", ds, k), einsum("bnts,btnh->bsh", ds, q), einsum("bnts,btnh->bsh", p, do)
        dq, dk, dv = (x.astype(jnp.bfloat16) for x in grads)
        return out, jnp.moveaxis(lse, 1, 2), dq, dk[:, :, None], dv[:, :, None]

    plain = dense(case.q, case.k, case.v, case.cotangent)

    def errors(results):
        pairs = zip(results, exact, strict=True)
        return [float(jnp.sqrt(jnp.mean((x.astype(jnp.float32) - wanted) ** 2))) for x, wanted in pairs]

    for name, ours, theirs in zip(
        ("out", "lse", "dq", "dk", "dv"), errors(run_kernels(case)), errors(plain), strict=True
    ):
        if name == "lse":  # fp32 in both: what differs is the rounding of logarithms to another base
            assert ours < 5e-7
        else:
            assert ours <= theirs, (name, ours, theirs)


def test_tiles_that_no_tpu_takes_are_refused():
    case = make_case(np.zeros((1, T)), 0, 2, 1, 16)
    with pytest.raises(NotImplementedError, match="tiles of 100 x 128; allowed: multiples of 128"):
        attention(case.q, case.k, case.v, case.mask, plan=make_plan(case.mask, 100, 128), implementation="pallas_tpu")
