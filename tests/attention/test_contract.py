"""The contract that every implementation of attention keeps; a new one is tested by being listed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.attention import attention, attention_with_lse
from anchorjax.attention.anchors import NOTHING
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask
from anchorjax.types import IMPLEMENTATIONS
from tests.attention.contract import BENDS, HEADS, Case, float64_attention, layouts, make_case

# The TPU kernels are interpreted, which is slow: test_pallas_tpu.py has their part of the contract.
IMPLEMENTATIONS = [name for name in IMPLEMENTATIONS if name != "pallas_tpu"]
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]
TILES = (16, 32)
TOLERANCE = 2e-5  # fp32, forward and backward


@functools.partial(jax.jit, static_argnames=("implementation", "tiles"))
def forward_and_vjp(q, k, v, cotangent, mask, implementation, tiles=TILES):
    plan = make_plan(mask, *tiles)
    apply = functools.partial(attention_with_lse, mask=mask, plan=plan, implementation=implementation)
    (out, lse), vjp = jax.vjp(apply, q, k, v)
    # The log-sum-exp's cotangent is part of every gradient here, save where no key is seen.
    return out, *vjp((cotangent, jnp.where(lse > NOTHING, cotangent[..., 0].astype(jnp.float32), 0.0)))


def run(case: Case, implementation: str, **kwargs):
    return forward_and_vjp(case.q, case.k, case.v, case.cotangent, case.mask, implementation, **kwargs)


def max_error(got, wanted) -> float:
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("implementation", FAST)
@settings(max_examples=40, deadline=None)
@given(layout=layouts(), shape=st.sampled_from(list(zip(HEADS, BENDS, strict=True))), seed=st.integers(0, 1000))
def test_equals_reference_forward_and_backward(implementation, layout, shape, seed):
    heads, (window, soft_cap) = shape
    case = make_case(*layout, *heads, seed=seed, window=window, soft_cap=soft_cap)
    assert max_error(run(case, implementation), run(case, "reference")) < TOLERANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=8, deadline=None)
@given(layout=layouts(), shape=st.sampled_from(list(zip(HEADS, BENDS, strict=True))))
def test_equals_float64_oracle(implementation, layout, shape):
    heads, (window, soft_cap) = shape
    case = make_case(*layout, *heads, window=window, soft_cap=soft_cap)
    oracle = float64_attention(case.q, case.k, case.v, case.mask)
    np.testing.assert_allclose(run(case, implementation)[0], oracle, atol=TOLERANCE)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("tiles", [(8, 64), (64, 8), (128, 128), (83, 83)])
def test_tile_sizes_do_not_matter(implementation, tiles):
    segments = np.sort(np.random.default_rng(0).integers(1, 5, (2, 83)), axis=1)
    segments[:, 0], segments[1, -20:] = 0, -1
    case = make_case(segments, 1, 4, 2, 16)
    assert max_error(run(case, implementation, tiles=tiles), run(case, "reference")) < TOLERANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dead_rows_and_pads_are_exact_zeros(implementation):
    segments = np.full((2, 83), -1)
    segments[0, :40], segments[0, 0] = 1, 0
    out, dq, dk, dv = run(make_case(segments, 1, 4, 2, 16), implementation)
    for x in (out, dq, dk, dv):
        assert bool(jnp.all(x[1] == 0)) and bool(jnp.all(x[0, 40:] == 0))
        assert bool(jnp.any(x[0, :40] != 0))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_is_deterministic(implementation):
    segments = np.sort(np.random.default_rng(1).integers(0, 5, (2, 83)), axis=1)
    case = make_case(segments, 1, 4, 2, 16)
    for first, second in zip(run(case, implementation), run(case, implementation), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_a_batch_are_independent(implementation):
    segments = np.sort(np.random.default_rng(2).integers(0, 5, (2, 83)), axis=1)
    both = make_case(segments, 1, 4, 2, 16)
    for b in range(2):
        arrays = (x[b : b + 1] for x in (both.q, both.k, both.v, both.cotangent))
        row = Case(*arrays, Mask.from_segments(both.mask.q_segment_ids_BT[b : b + 1], 1))
        for alone, together in zip(run(row, implementation), run(both, implementation), strict=True):
            np.testing.assert_allclose(alone[0], together[b], atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_shared_anchor_equals_an_anchor_copied_into_every_document(implementation):
    """The duplicated layout [A a b c A d e] under a plain document mask: same outputs, gradients add up."""
    shared = make_case(np.array([[0, 1, 1, 1, 2, 2]]), 1, 4, 2, 16)
    copy = jnp.array([0, 1, 2, 3, 0, 4, 5])  # where each token of the duplicated row comes from
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2]], jnp.int32)
    cotangent = shared.cotangent[:, copy].at[:, 4].set(0)  # the copy's output is not in the shared row
    copied = Case(*(x[:, copy] for x in (shared.q, shared.k, shared.v)), cotangent, Mask.from_segments(segments, 0))
    out, *grads = run(shared, implementation)
    copied_out, *copied_grads = run(copied, implementation)
    np.testing.assert_allclose(copied_out[:, [0, 1, 2, 3, 5, 6]], out, atol=1e-6)
    for grad, copied_grad in zip(grads, copied_grads, strict=True):
        np.testing.assert_allclose(jnp.zeros_like(grad).at[:, copy].add(copied_grad), grad, atol=1e-5)


@pytest.mark.parametrize("implementation", FAST)
def test_keys_may_come_in_any_order_and_queries_be_a_part(implementation):
    """A shard's queries against reordered keys equal the same queries of the whole row."""
    segments = np.sort(np.random.default_rng(3).integers(1, 4, (1, 83)), axis=1)
    segments[:, 0] = 0
    case = make_case(segments, 1, 4, 2, 16)
    order, part = jnp.array(np.random.default_rng(4).permutation(83)), slice(40, 70)
    seg, index = case.mask.q_segment_ids_BT, case.mask.q_index_BT
    mask = Mask(seg[:, part], seg[:, order], index[:, part], index[:, order], 1)
    shard = Case(case.q[:, part], case.k[:, order], case.v[:, order], case.cotangent[:, part], mask)
    only_part = Case(case.q, case.k, case.v, jnp.zeros_like(case.q).at[:, part].set(case.cotangent[:, part]), case.mask)
    out, dq, dk, dv = run(shard, implementation)
    wanted_out, wanted_dq, wanted_dk, wanted_dv = run(only_part, "reference")
    got = (out, dq, dk, dv)
    wanted = (wanted_out[:, part], wanted_dq[:, part], wanted_dk[:, order], wanted_dv[:, order])
    assert max_error(got, wanted) < TOLERANCE


@pytest.mark.parametrize("implementation", FAST)
def test_bfloat16_error_is_not_above_that_of_a_dense_computation(implementation):
    """Against float64: not worse than bf16 matmuls around an fp32 softmax over the dense mask."""
    segments = np.sort(np.random.default_rng(5).integers(1, 4, (2, 83)), axis=1)
    segments[:, 0] = 0
    case = make_case(segments, 1, 4, 2, 16, dtype="bfloat16")
    oracle = float64_attention(case.q, case.k, case.v, case.mask)
    logits = jnp.einsum(
        "btkgh,bskh->bkgts", case.q.reshape(2, 83, 2, 2, 16), case.k, preferred_element_type=jnp.float32
    )
    logits = jnp.where(case.mask.materialize()[:, None, None], logits / 4, -jnp.inf)
    weights = jax.nn.softmax(logits, -1).astype(jnp.bfloat16)
    dense = jnp.einsum("bkgts,bskh->btkgh", weights, case.v).reshape(2, 83, 4, 16)

    def error(x):
        return np.sqrt(np.mean((np.asarray(x, np.float64) - oracle) ** 2))

    assert error(run(case, implementation)[0]) <= error(dense)


@pytest.mark.parametrize("implementation", FAST)
def test_bfloat16_gradients_are_not_worse_than_a_dense_computation_s(implementation):
    """Both against the reference in fp32 on the same bf16 numbers; the dense one is differentiated by JAX."""
    segments = np.sort(np.random.default_rng(6).integers(1, 4, (2, 83)), axis=1)
    segments[:, 0] = 0
    case = make_case(segments, 1, 4, 2, 16, dtype="bfloat16")
    exact = run(
        Case(*(x.astype(jnp.float32) for x in (case.q, case.k, case.v, case.cotangent)), case.mask), "reference"
    )
    allowed_BTS = case.mask.materialize()

    @jax.jit
    def dense(q, k, v):
        heads_first = "btkgh,bskh->bkgts"
        s = jnp.einsum(heads_first, q.reshape(2, 83, 2, 2, 16), k, preferred_element_type=jnp.float32) / 4
        p = jax.nn.softmax(jnp.where(allowed_BTS[:, None, None], s, -jnp.inf), -1).astype(jnp.bfloat16)
        lse = jnp.moveaxis(jax.nn.logsumexp(jnp.where(allowed_BTS[:, None, None], s, -jnp.inf), -1), 3, 1)
        return jnp.einsum("bkgts,bskh->btkgh", p, v).reshape(2, 83, 4, 16), lse.reshape(2, 83, 4)

    cotangents = case.cotangent, case.cotangent[..., 0].astype(jnp.float32)
    dense_grads = jax.vjp(dense, case.q, case.k, case.v)[1](cotangents)
    for got, dense_grad, wanted in zip(run(case, implementation)[1:], dense_grads, exact[1:], strict=True):
        error, dense_error = (
            float(jnp.sqrt(jnp.mean((x.astype(jnp.float32) - wanted) ** 2))) for x in (got, dense_grad)
        )
        assert error <= dense_error


@pytest.mark.parametrize("implementation", FAST)
def test_dead_tiles_are_not_visited(implementation):
    """A visited tile multiplies its masked weights, zeros, with its values: not-a-number would come through."""
    segments = np.repeat([1, 2], [32, 96])[None]
    segments[:, 0] = 0
    case = make_case(segments, 1, 4, 2, 16)
    first, second = slice(1, 32), slice(32, 128)
    other_document_is_nan = lambda x: x.at[:, second].set(jnp.nan)  # noqa: E731
    keys = Case(case.q, other_document_is_nan(case.k), other_document_is_nan(case.v), case.cotangent, case.mask)
    out, dq, _, _ = run(keys, implementation)
    queries = Case(other_document_is_nan(case.q), case.k, case.v, other_document_is_nan(case.cotangent), case.mask)
    _, _, dk, dv = run(queries, implementation)
    for got in (out, dq, dk, dv):
        assert bool(jnp.isfinite(got[:, first]).all()) and bool(jnp.isnan(got[:, second]).any())


@pytest.mark.parametrize("implementation", FAST)
def test_memory_grows_linearly_with_the_row(implementation):
    """A dense fp32 mask of 16K tokens alone would be 1 GB; temporaries must scale with T."""

    def temporaries(T):
        x = {heads: jax.ShapeDtypeStruct((1, T, heads, 32), jnp.float32) for heads in (2, 1)}
        mask = jax.eval_shape(lambda s: Mask.from_segments(s, 1), jax.ShapeDtypeStruct((1, T), jnp.int32))
        lowered = forward_and_vjp.lower(x[2], x[1], x[1], x[2], mask, implementation, (512, 512))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(2**14) < 2.2 * temporaries(2**13)


def test_faults_are_named():
    case = make_case(np.zeros((1, 83)), 0, 4, 2, 16)
    with pytest.raises(ValueError, match="'fast' is unknown; there are reference, xla, pallas_tpu"):
        attention(case.q, case.k, case.v, case.mask, implementation="fast")
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2"):
        attention(case.q[:, :, :3], case.k, case.v, case.mask)
    with pytest.raises(ValueError, match="must be one dtype"):
        attention(case.q, case.k.astype(jnp.bfloat16), case.v, case.mask)
    with pytest.raises(ValueError, match="do not fit"):
        attention(case.q, case.k[..., :8], case.v, case.mask)
    with pytest.raises(ValueError, match=r"mask.q_segment_ids_BT has shape \(1, 83\); q and k allow \(1, 50\)"):
        attention(case.q[:, :50], case.k, case.v, case.mask)
    with pytest.raises(ValueError, match=r"q has shape \(83, 4, 16\); allowed: \[rows"):
        attention(case.q[0], case.k, case.v, case.mask)
    with pytest.raises(ValueError, match="k is float16; allowed: float32, bfloat16"):
        attention(case.q, case.k.astype(jnp.float16), case.v, case.mask)
    for field, value, words in (
        ("q_segment_ids_BT", jnp.zeros((1, 83)), "float32; allowed: int32"),
        ("num_anchors", -1, "0 or more"),
        ("window", 0, "1 or more"),
        ("soft_cap", 0.0, "above 0"),
    ):
        with pytest.raises(ValueError, match=f"mask.{field} is .*{words}"):
            attention(case.q, case.k, case.v, dataclasses.replace(case.mask, **{field: value}))
