"""The leakage probe: silent on every implementation, loud on a mask that is off by one token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax.attention import attention, leakage
from anchorjax.attention.plan import make_plan
from anchorjax.errors import LeakageError
from anchorjax.masks import Mask
from anchorjax.types import IMPLEMENTATIONS
from tests.attention.contract import SETTINGS, sorted_documents

HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}


def probe(implementation, mask, tokens=None, told=None, dtype="float32", which=leakage.probe):
    """Findings about attention under `mask`, held against what `told` says (the same mask, if not given)."""
    setting = SETTINGS[implementation]
    plan = make_plan(mask, *setting.tiles)

    @jax.jit
    def attend(q, k, v, _):
        return attention(q, k, v, plan, implementation=implementation)

    tokens = tokens or leakage.probe_tokens(np.asarray(mask.q_segment_ids_BT))
    with setting.interpreted():
        return which(attend, told or plan, tokens, dtype=dtype, **HEADS)


@pytest.mark.parametrize("which", [leakage.probe, leakage.probe_gradients])
@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [
        # Interpreted, a probe of the TPU kernels takes 20 s: in every run for the dtype that is trained in.
        pytest.param(name, dtype, marks=pytest.mark.slow if (name, dtype) == ("pallas_tpu", "float32") else ())
        for name in IMPLEMENTATIONS
        for dtype in ("float32", "bfloat16")
    ],
)
def test_no_implementation_leaks(implementation, dtype, which):
    T = SETTINGS[implementation].T
    segments = sorted_documents(T, 2, seed=7)
    segments[0, -9:] = -1
    mask = Mask.from_segments(jnp.asarray(segments, jnp.int32), 1)
    tokens = [*leakage.probe_tokens(segments), (0, T - 1)]  # a pad, too
    findings = probe(implementation, mask, tokens, dtype=dtype, which=which)
    assert len(findings) > 6
    leakage.check(findings)


ROW = jnp.array([[0, 1, 1, 1, 2, 2, -1]], jnp.int32)
MASK = Mask.from_segments(ROW, 1)


def with_segment(token: int, segment: int) -> Mask:
    segments = ROW.at[0, token].set(segment)
    return dataclasses.replace(MASK, q_segment_ids_BT=segments, kv_segment_ids_BS=segments)


WRONG = {
    "a document is a token too long": (with_segment(4, 1), "token 1 of row 0 reaches token 4 of row 0"),
    "a pad sees": (with_segment(6, 2), "token 0 of row 0 reaches token 6 of row 0"),
    "the future is seen": (
        dataclasses.replace(MASK, q_index_BT=MASK.q_index_BT + 1),
        "token 2 of row 0 reaches token 1 of row 0",
    ),
    "the anchor is hidden": (
        dataclasses.replace(MASK, num_anchors=0),
        "token 0 of row 0 does not reach token 1 of row 0",
    ),
    "a window": (dataclasses.replace(MASK, window=2), "token 1 of row 0 does not reach token 3 of row 0"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_mask_off_by_one_token_is_named(fault):
    mask, words = WRONG[fault]
    findings = probe("xla", mask, tokens=[(0, token) for token in range(7)], told=MASK)
    with pytest.raises(LeakageError, match=words):
        leakage.check(findings)


WRONG_BACKWARD = {
    "a document is a token too long": "token 4 of row 0 reaches token 1 of row 0",
    "a pad sees": "token 6 of row 0 reaches token 0 of row 0",
    "the future is seen": "token 1 of row 0 reaches token 2 of row 0",
    "the anchor is hidden": "token 1 of row 0 does not reach token 0 of row 0",
    "a window": "token 3 of row 0 does not reach token 1 of row 0",
}


@pytest.mark.parametrize("fault", WRONG_BACKWARD)
def test_a_backward_pass_with_another_mask_is_named(fault):
    """The forward pass keeps the mask: its probe finds nothing."""
    wrong, _ = WRONG[fault]

    @jax.custom_vjp
    def attend(q, k, v):
        return attention(q, k, v, MASK)

    def backward(qkv, cotangent):
        return jax.vjp(lambda *qkv: attention(*qkv, wrong), *qkv)[1](cotangent)

    attend.defvjp(lambda *qkv: (attend(*qkv), qkv), backward)
    arguments = (jax.jit(lambda q, k, v, *_: attend(q, k, v)), MASK, [(0, token) for token in range(7)])
    leakage.check(leakage.probe(*arguments, **HEADS))
    with pytest.raises(LeakageError, match=f"the gradient of {WRONG_BACKWARD[fault]}"):
        leakage.check(leakage.probe_gradients(*arguments, **HEADS))


def test_rows_that_see_each_other_are_named():
    mask = Mask.from_segments(jnp.repeat(ROW, 2, axis=0), 1)

    @jax.jit
    def attend(q, k, v, mask):
        out = attention(q, k, v, mask)
        return out + out.sum(0)

    with pytest.raises(LeakageError, match="token 2 of row 0 reaches token 2 of row 1"):
        leakage.check(leakage.probe(attend, mask, [(0, 2)], **HEADS))
    with pytest.raises(LeakageError, match="gradient of token 2 of row 0 reaches token 0 of row 1"):
        leakage.check(leakage.probe_gradients(attend, mask, [(0, 2)], **HEADS))


def test_probe_tokens_stand_at_boundaries():
    assert leakage.probe_tokens(np.asarray(ROW)) == [(0, n) for n in (0, 1, 3, 4, 5, 6)]
    assert leakage.probe_tokens(np.full((2, 4), -1)) == []


def test_probe_tokens_stand_at_the_boundaries_of_a_row_in_any_order():
    order = np.random.default_rng(0).permutation(ROW.shape[1]).astype(np.int32)
    found = leakage.probe_tokens(np.asarray(ROW)[:, order], order[None])
    assert [(row, order[place]) for row, place in found] == leakage.probe_tokens(np.asarray(ROW))


def test_probe_tokens_are_of_rows_that_have_tokens():
    dead = np.full((1, 7), -1)
    half = np.array([[0, 1, 1, -1, -1, -1, -1]])
    expected = [(1, n) for n in (0, 1, 3, 4, 5, 6)]
    assert leakage.probe_tokens(np.concatenate([dead, ROW, dead])) == expected
    assert leakage.probe_tokens(np.concatenate([dead, ROW, half, dead])) == [*expected, (2, 1)]
