"""FLOP counts against counts by hand."""

import jax
import pytest

from anchorjax.models import flops
from tests import tiny

# L=2, D=32, F=64, N=2, K=1, H=16, V=320
MODEL = tiny.config(model__num_kv_heads=1).model
PER_LAYER = 32 * 2 * 16 + 2 * (32 * 1 * 16) + 2 * 16 * 32 + 3 * 32 * 64  # q, k and v, o, the three of the FFN
WEIGHTS = 2 * PER_LAYER + 32 * 320


def test_matmul_weights_by_hand():
    assert flops.matmul_parameters(MODEL) == WEIGHTS == 28672


@pytest.mark.parametrize("tie", [True, False])
def test_input_embedding_is_a_look_up_tied_or_not(tie):
    assert flops.matmul_parameters(tiny.config(model__tie_embeddings=tie, model__num_kv_heads=1).model) == WEIGHTS


def test_train_flops_by_hand():
    # Per pair and head: q.k and p.v forward, and dp, dv, dq, dk backward: 6 products of 2 H FLOPs.
    assert flops.train_flops(MODEL, tokens=100, pairs=1000) == 6 * WEIGHTS * 100 + 2 * 2 * 1000 * 6 * 2 * 16


def test_one_document_has_as_many_live_pairs_as_the_causal_triangle():
    from anchorjax.masks import count_live_pairs

    row = jax.numpy.ones(64, int)
    assert flops.causal_pairs(64) == 64 * 65 / 2 == float(count_live_pairs(row, 0))


def test_peak_is_unknown_unless_said_or_in_the_table(monkeypatch):
    assert flops.peak_flops(0.0) is None
    assert flops.peak_flops(2.5) == 2.5e12 * 8
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(flops.PEAK_TFLOPS, kind, 100.0)
    assert flops.peak_flops(0.0) == 100e12 * 8
    assert flops.peak_flops(2.5) == 2.5e12 * 8
