"""The contract that every implementation of attention keeps; a new one is tested by being listed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.attention import attention
from anchorjax.attention.anchors import NOTHING
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask
from anchorjax.types import IMPLEMENTATIONS
from tests.attention import contract
from tests.attention.contract import (
    FAST,
    SETTINGS,
    SHAPES,
    TOLERANCE,
    Case,
    dense_bfloat16,
    documents,
    float64_attention,
    float64_gradients,
    layouts,
    make_case,
    max_error,
    run,
    sorted_documents,
)


def test_the_error_of_a_gradient_that_is_not_a_number_is_not_small():
    zero = jnp.zeros((2, 192, 4, 16))  # large enough for XLA to reduce it in vectors: then -inf is its maximum
    out, lse, dq, dk, dv = zero, zero, zero.at[1].set(jnp.nan), zero, zero
    assert not max_error((out, lse, dq, dk, dv), (zero,) * 5) < TOLERANCE


@pytest.mark.parametrize("implementation", FAST)
def test_equals_reference_forward_and_backward(implementation):
    setting = SETTINGS[implementation]
    shapes = SHAPES if setting.examples > 10 else SHAPES[:2]

    @settings(max_examples=setting.examples, deadline=None)
    @given(layout=layouts(setting.T), shape=st.sampled_from(shapes), seed=st.integers(0, 1000))
    def check(layout, shape, seed):
        heads, (window, soft_cap) = shape
        case = make_case(*layout, *heads, seed=seed, window=window, soft_cap=soft_cap)
        assert max_error(run(case, implementation), run(case, "reference")) < TOLERANCE

    check()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_float64_oracle(implementation):
    setting = SETTINGS[implementation]

    @settings(max_examples=min(8, setting.examples), deadline=None)
    @given(layout=layouts(setting.T), shape=st.sampled_from(SHAPES[:2] if setting.examples < 10 else SHAPES))
    def check(layout, shape):
        heads, (window, soft_cap) = shape
        case = make_case(*layout, *heads, window=window, soft_cap=soft_cap)
        out, _, *gradients = run(case, implementation)
        np.testing.assert_allclose(out, float64_attention(case.q, case.k, case.v, case.mask), atol=TOLERANCE)
        for got, wanted in zip(gradients, float64_gradients(case)[1:], strict=True):
            np.testing.assert_allclose(got, wanted, atol=TOLERANCE)

    check()


@pytest.mark.parametrize(
    ("implementation", "tiles"), [(name, tiles) for name in FAST for tiles in SETTINGS[name].other_tiles]
)
def test_tile_sizes_do_not_matter(implementation, tiles):
    segments = sorted_documents(SETTINGS[implementation].T, 2, seed=0)
    segments[1, -20:] = -1
    case = make_case(segments, 1, 4, 2, 16)
    assert max_error(run(case, implementation, tiles=tiles), run(case, "reference")) < TOLERANCE


@pytest.mark.parametrize("implementation", FAST)
def test_a_row_may_end_inside_of_a_tile_and_at_the_end_of_a_kernel_s_block(implementation):
    """192 tokens are one and a half tiles of 128, and whole blocks of 16, 32 or 64."""
    case = make_case(sorted_documents(192, 2, seed=0), 1, 4, 2, 16)
    assert max_error(run(case, implementation, tiles=(128, 128)), run(case, "reference")) < TOLERANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dead_rows_and_pads_are_exact_zeros(implementation):
    segments = np.full((2, SETTINGS[implementation].T), -1)
    segments[0, :40], segments[0, 0] = 1, 0
    out, lse, dq, dk, dv = run(make_case(segments, 1, 4, 2, 16), implementation)
    for x in (out, dq, dk, dv):
        assert bool(jnp.all(x[1] == 0)) and bool(jnp.all(x[0, 40:] == 0))
        assert bool(jnp.any(x[0, :40] != 0))
    assert bool(jnp.all(lse[1] == NOTHING)) and bool(jnp.all(lse[0, 40:] == NOTHING))


@pytest.mark.parametrize("name", ["q", "k", "v", "cotangent"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_at_padding_is_read(implementation, name):
    """Masked weights are zeros, and 0 * NaN is NaN: it must not reach a product."""
    T = SETTINGS[implementation].T
    segments = np.stack([documents(T, [30, 50], 1, pads=20), documents(T, [40], 1, pads=35)])
    segments[1, 5:9] = -1  # inside of a live tile, in front of a document
    case, pad_BT = make_case(segments, 1, 4, 2, 16, window=50), segments == -1

    def with_padding(value):
        x = jnp.where(pad_BT[..., None, None], value, getattr(case, name))
        return run(dataclasses.replace(case, **{name: x}), implementation)

    wanted = with_padding(0.0)
    for gradient in wanted[2:]:
        assert bool(jnp.all(gradient[pad_BT] == 0)) and bool(jnp.any(gradient[~pad_BT] != 0))
    for value in (jnp.nan, jnp.inf):
        for got, of_zeros in zip(with_padding(value), wanted, strict=True):
            np.testing.assert_array_equal(got, of_zeros)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_is_deterministic(implementation):
    case = make_case(sorted_documents(SETTINGS[implementation].T, 2, seed=1), 1, 4, 2, 16)
    for first, second in zip(run(case, implementation), run(case, implementation), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_a_batch_are_independent(implementation):
    """A row beside a dead one gives what it gives beside any other, before it and behind it."""
    both = make_case(sorted_documents(SETTINGS[implementation].T, 2, seed=2), 1, 4, 2, 16)
    together = run(both, implementation)
    for row in (0, 1):
        dead = both.mask.q_segment_ids_BT.at[1 - row].set(-1)
        alone = run(dataclasses.replace(both, mask=Mask.from_segments(dead, 1)), implementation)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[row], other[row])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_shared_anchor_equals_an_anchor_copied_into_every_document(implementation):
    """The duplicated layout [A a b c A d e] under a plain document mask: same outputs, gradients add up."""
    shared = make_case(np.array([[0, 1, 1, 1, 2, 2]]), 1, 4, 2, 16)
    copy = jnp.array([0, 1, 2, 3, 0, 4, 5])  # where each token of the duplicated row comes from
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2]], jnp.int32)
    cotangent = shared.cotangent[:, copy].at[:, 4].set(0)  # the copy's output is not in the shared row
    copied = Case(*(x[:, copy] for x in (shared.q, shared.k, shared.v)), cotangent, Mask.from_segments(segments, 0))
    out, _, *grads = run(shared, implementation)
    copied_out, _, *copied_grads = run(copied, implementation)
    np.testing.assert_allclose(copied_out[:, [0, 1, 2, 3, 5, 6]], out, atol=1e-6)
    for grad, copied_grad in zip(grads, copied_grads, strict=True):
        np.testing.assert_allclose(jnp.zeros_like(grad).at[:, copy].add(copied_grad), grad, atol=1e-5)


@pytest.mark.parametrize("implementation", FAST)
def test_keys_may_come_in_any_order_and_queries_be_a_part(implementation):
    """A shard's queries against reordered keys equal the same queries of the whole row."""
    T = SETTINGS[implementation].T
    case = make_case(sorted_documents(T, 1, seed=3), 1, 4, 2, 16)
    order, part = jnp.array(np.random.default_rng(4).permutation(T)), slice(T // 2, T - 13)
    seg, index = case.mask.q_segment_ids_BT, case.mask.q_index_BT
    mask = Mask(seg[:, part], seg[:, order], index[:, part], index[:, order], 1)
    shard = Case(case.q[:, part], case.k[:, order], case.v[:, order], case.cotangent[:, part], mask)
    only_part = Case(case.q, case.k, case.v, jnp.zeros_like(case.q).at[:, part].set(case.cotangent[:, part]), case.mask)
    wanted_out, wanted_lse, wanted_dq, wanted_dk, wanted_dv = run(only_part, "reference")
    wanted = (wanted_out[:, part], wanted_lse[:, part], wanted_dq[:, part], wanted_dk[:, order], wanted_dv[:, order])
    assert max_error(run(shard, implementation), wanted) < TOLERANCE


@pytest.mark.parametrize("implementation", FAST)
def test_bfloat16_is_not_worse_than_a_dense_computation(implementation):
    """Errors against float64, of the output and of each gradient."""
    case = make_case(sorted_documents(SETTINGS[implementation].T, 2, seed=5), 1, 4, 2, 16, dtype="bfloat16")
    out, _, *gradients = run(case, implementation)
    dense = dense_bfloat16(case.q, case.k, case.v, case.cotangent, case.mask.materialize())
    for got, plain, exact in zip((out, *gradients), dense, float64_gradients(case), strict=True):
        error, plain_error = (np.sqrt(np.mean((np.asarray(x, np.float64) - exact) ** 2)) for x in (got, plain))
        assert error <= plain_error


@pytest.mark.parametrize("implementation", FAST)
def test_dead_tiles_are_not_visited(implementation):
    """A visited tile multiplies its masked weights, zeros, with its values: not-a-number would come through."""
    q_tile, kv_tile = SETTINGS[implementation].tiles
    size = max(q_tile, kv_tile)
    segments = np.repeat([1, 2], [size, 2 * size])[None]
    segments[:, 0] = 0
    case = make_case(segments, 1, 4, 2, 16)
    first, second = slice(1, size), slice(size, 3 * size)
    other_document_is_nan = lambda x: x.at[:, second].set(jnp.nan)  # noqa: E731
    keys = Case(case.q, other_document_is_nan(case.k), other_document_is_nan(case.v), case.cotangent, case.mask)
    out, _, dq, _, _ = run(keys, implementation)
    queries = Case(other_document_is_nan(case.q), case.k, case.v, other_document_is_nan(case.cotangent), case.mask)
    _, _, _, dk, dv = run(queries, implementation)
    for got in (out, dq, dk, dv):
        assert bool(jnp.isfinite(got[:, first]).all()) and bool(jnp.isnan(got[:, second]).any())


def test_memory_grows_linearly_with_the_row():
    """A dense fp32 mask of 16K tokens alone would be 1 GB; temporaries of `xla` must scale with T.

    Those of the kernels are measured by their own compilers (test_tpu_compiles.py, test_gpu_compiles.py).
    """

    def temporaries(T):
        x = {heads: jax.ShapeDtypeStruct((1, T, heads, 32), jnp.float32) for heads in (2, 1)}
        mask = jax.eval_shape(lambda s: Mask.from_segments(s, 1), jax.ShapeDtypeStruct((1, T), jnp.int32))
        lowered = contract.forward_and_vjp.lower(x[2], x[1], x[1], x[2], mask, "xla", (512, 512))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(2**14) < 2.2 * temporaries(2**13)


def test_faults_are_named():
    case = make_case(np.zeros((1, 83)), 0, 4, 2, 16)
    with pytest.raises(ValueError, match="'fast' is unknown; there are reference, xla, pallas_tpu, pallas_gpu"):
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
    with pytest.raises(TypeError, match=r"attention: the mask is bool; allowed: a masks.Mask, or a Plan made of one"):
        attention(case.q, case.k, case.v, case.mask.materialize())
    with pytest.raises(TypeError, match="the mask is NoneType; allowed"):
        attention(case.q, case.k, case.v, None)
    for field, value, words in (
        ("q_segment_ids_BT", jnp.zeros((1, 83)), "float32; allowed: int32"),
        ("num_anchors", -1, "0 or more"),
        ("window", 0, "1 or more"),
        ("soft_cap", 0.0, "above 0"),
    ):
        with pytest.raises(ValueError, match=f"mask.{field} is .*{words}"):
            attention(case.q, case.k, case.v, dataclasses.replace(case.mask, **{field: value}))


@pytest.mark.parametrize("implementation", FAST)
def test_a_plan_of_other_arrays_is_refused(implementation):
    case = make_case(np.zeros((2, 300)), 0, 2, 1, 16)

    def attend(part, plan):
        return attention(case.q[part], case.k[part], case.v[part], plan, implementation=implementation)

    def planned(length):  # shapes alone are looked at
        mask = Mask.from_segments(jnp.zeros((2, length), jnp.int32), 0)
        return jax.eval_shape(lambda mask: make_plan(mask, 128, 128), mask)

    plan, of_short_rows = planned(300), planned(200)
    with pytest.raises(ValueError, match="plan has 6 query tiles; 1 rows of 300 tokens in tiles of 128 allow 3"):
        attend(np.s_[:1], plan)
    with pytest.raises(ValueError, match="plan has 6 query tiles; 2 rows of 200 tokens in tiles of 128 allow 4"):
        attend(np.s_[:, :200], plan)
    with pytest.raises(ValueError, match="plan has 6 key tiles; 2 rows of 200 tokens in tiles of 128 allow 4"):
        attend(np.s_[:, :200], dataclasses.replace(plan, by_query=of_short_rows.by_query))
    with pytest.raises(ValueError, match=r"mask.q_segment_ids_BT has shape \(2, 300\); q and k allow \(2, 270\)"):
        attend(np.s_[:, :270], plan)  # as many tiles
