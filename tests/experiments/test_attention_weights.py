"""Entropy of attention, by hand and by transformers' logits, and the probe of biased rounding on made-up queries."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax.errors import DONE
from anchorjax.experiments.attention_weights import command, entropy, rounding
from anchorjax.experiments.attention_weights.capture import Layer, Row, capture
from anchorjax.experiments.attention_weights.entropy import Spread
from anchorjax.inference import language_model
from anchorjax.masks import Mask
from tests.checkpoints.huggingface import tiny
from tests.evaluation.making import write_tokenizer
from tests.experiments.test_deviation import make_row, sees, softmax, their_logits


def layer_of(q_TNH, k_TKH, segment_ids_T=None, anchors=0, **mask) -> Layer:
    ids = np.zeros(len(q_TNH), np.int32) if segment_ids_T is None else np.asarray(segment_ids_T, np.int32)
    mask = Mask.from_segments(jnp.asarray(ids)[None], anchors, **mask)
    return Layer(q_TNH.astype(np.float32), k_TKH.astype(np.float32), k_TKH.astype(np.float32), mask)


# Entropy


def test_uniform_attention_over_4096_keys():
    """8.3178 nats, and log n for a query that sees n keys."""
    layer = layer_of(np.zeros((4096, 1, 4)), np.random.default_rng(0).standard_normal((4096, 1, 4)))
    found = entropy.spread(layer)
    assert found.entropy_NT[0, -1] == pytest.approx(8.3178, abs=5e-5)
    np.testing.assert_allclose(found.entropy_NT[0], np.log(np.arange(1, 4097)), atol=1e-5)
    np.testing.assert_array_equal(found.visible_T, np.arange(1, 4097))
    np.testing.assert_allclose(found.first_NT[0], 1 / np.arange(1, 4097), rtol=1e-5)
    means = entropy.by_visible([found])
    assert means["queries"][:3] == [1, 2, 4] and means["queries"][-1] == 1
    assert means["relative"][0][0] is None, "one visible key has no entropy to compare with"
    np.testing.assert_allclose(means["relative"][0][1:], 1, atol=1e-5)


def test_attention_to_one_key_has_no_entropy():
    """All other weights underflow to 0: their logarithm is never taken."""
    q_TNH, k_TKH = np.full((300, 2, 4), 400.0), np.zeros((300, 1, 4))
    k_TKH[0] = 1.0
    found = entropy.spread(layer_of(q_TNH, k_TKH))
    assert np.all(found.entropy_NT == 0) and np.all(found.first_NT == 1)


def test_means_are_of_entropies_and_not_of_weights():
    """Two queries that attend to one key each, and not the same: their mean weights would have log 2."""
    q_TNH = np.array([[[0.0, 0.0]], [[500.0, 0.0]], [[0.0, 500.0]]])
    k_TKH = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]])
    found = entropy.by_visible([entropy.spread(layer_of(q_TNH, k_TKH))])
    assert found["queries"] == [1, 2] and found["entropy"] == [[0.0, 0.0]] and found["first"] == [[1.0, 0.5]]


def test_rows_of_several_samples_are_weighted_by_their_queries():
    short, long = (Spread(np.full((1, n), x), np.full((1, n), 0.5), np.full(n, 4)) for n, x in ((1, 1.0), (3, 0.2)))
    found = entropy.by_visible([short, long])
    assert found["queries"] == [0, 0, 4] and found["entropy"] == [[None, None, pytest.approx(0.4)]]
    assert found["relative"][0][2] == pytest.approx(0.4 / np.log(4))


@pytest.mark.parametrize("window", [None, 7])
def test_entropy_of_documents_behind_an_anchor(window, monkeypatch):
    """Grouped queries, a softcap and several blocks, in float64."""
    monkeypatch.setattr(entropy, "BLOCK", 16)
    rng, row = np.random.default_rng(1), make_row()
    q_TNH, k_TKH = rng.standard_normal((60, 4, 8)), rng.standard_normal((60, 2, 8))
    found = entropy.spread(layer_of(q_TNH, k_TKH, row.segment_ids_T, 1, window=window, soft_cap=1.5))
    sees_TS = sees(row, window)
    logits_NTS = 1.5 * np.tanh(np.einsum("tnh,snh->nts", q_TNH, k_TKH.repeat(2, 1)) / 8**0.5 / 1.5)
    weights_NTS = softmax(logits_NTS, sees_TS)
    expected_NT = -(weights_NTS * np.log(np.where(weights_NTS > 0, weights_NTS, 1))).sum(-1)
    np.testing.assert_allclose(found.entropy_NT, expected_NT, atol=1e-5)
    np.testing.assert_allclose(found.first_NT, weights_NTS[..., 0], atol=1e-6)
    np.testing.assert_array_equal(found.visible_T, sees_TS.sum(1))


# Whole models, against transformers


@pytest.fixture(scope="module", params=["llama untied", "mistral"])
def pair(request, tmp_path_factory):
    """(transformers' model, ours on one device, its directory)."""
    directory = tmp_path_factory.mktemp("model")
    theirs = tiny.make(request.param, directory)
    write_tokenizer(directory)
    description = language_model.describe(hf=directory, dtype="float32")
    return theirs, language_model.load(description, language_model.make_mesh(description.model, 1)), directory


def test_what_is_captured_has_transformers_entropy(pair):
    theirs, ours, _ = pair
    made = make_row()
    layers = capture(ours, Row(made.tokens_T, made.segment_ids_T, 1))
    sees_TS = sees(made, ours.description.model.sliding_window or None)
    logits_LNTS = their_logits(theirs, made, np.arange(60), sees_TS)
    assert len(layers) == len(logits_LNTS)
    for layer, logits_NTS in zip(layers, logits_LNTS, strict=True):
        weights_NTS = softmax(logits_NTS, sees_TS)
        expected_NT = -(weights_NTS * np.log(np.where(weights_NTS > 0, weights_NTS, 1))).sum(-1)
        np.testing.assert_allclose(entropy.spread(layer).entropy_NT, expected_NT, atol=1e-4)
    everywhere = capture(language_model.load(ours.description), Row(made.tokens_T, made.segment_ids_T, 1))
    for one, other in zip(layers, everywhere, strict=True):
        np.testing.assert_allclose(one.q_TNH, other.q_TNH, atol=1e-4)
        np.testing.assert_allclose(one.v_TKH, other.v_TKH, atol=1e-4)


@pytest.mark.parametrize("pair", ["llama untied"], indirect=True)
def test_the_command_writes_numbers_and_pictures(pair, tmp_path, capsys):
    arguments = [f"--hf={pair[2]}", "--tokens=32", "--document-tokens=8", "--measures=entropy,rounding"]
    assert command.main([*arguments, "--masks=full,anchor", f"--out={tmp_path}"]) == DONE
    written = json.loads((tmp_path / "attention_weights.json").read_text())
    layers = written["masks"]["anchor"]
    # Documents of 8, 8, 8 and 7 tokens behind the anchor, whose tokens see 2 to 9 keys.
    assert layers[0]["entropy"]["queries"] == [1, 4 * 2, 4 * 4, 4 + 3] and layers[0]["rounding"]["queries"] % 31 == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {
        *("relative.png", "first.png", "entropy-full.png", "entropy-anchor.png")
    }
    assert "of log(visible)" in capsys.readouterr().out
    assert command.main([*arguments, "--masks=causal", f"--out={tmp_path}"]) == 2
    assert "--masks=causal is not allowed: it must be of anchor, intra_doc, full" in capsys.readouterr().err


# Biased rounding


def probe(logits, values, sees_TS=None, anchors=0):
    logits = np.asarray(logits, np.float32)
    sees_TS = np.ones(logits.shape, bool) if sees_TS is None else sees_TS
    return rounding.probe_logits(logits, rounding.narrow(np.asarray(values, np.float32)), sees_TS, anchors)


def test_two_equal_maxima_are_counted():
    values = np.ones((3, 1))
    found = probe([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 5, 5]], values)
    assert (found.queries, found.shared_bf16, found.shared_fp32, found.ones, found.first) == (4, 3, 3, 3, 3)
    # 2.001 and 2 are one number in bfloat16, whose weights differ in fp32, and are both 1 once rounded.
    found = probe([[2.001, 2, 0]], values)
    assert (found.shared_bf16, found.shared_fp32, found.ones) == (1, 0, 1)
    # What is not visible does not count, nor a query that sees one key.
    found = probe([[1, 1, 0], [1, 1, 0]], values, np.array([[True, False, True], [True, False, False]]))
    assert (found.queries, found.shared_bf16, found.first) == (1, 0, 1)


def test_the_anchors_weight_is_not_rounded():
    assert probe([[1, 1, 0]], np.ones((3, 1)), anchors=1).ones == 0
    assert probe([[1, 1, 1]], np.ones((3, 1)), anchors=1).ones == 1


def test_an_error_in_ulps_by_hand():
    """bfloat16 has steps of 1/128 in [1, 2), and of 1/32 in [4, 8)."""
    found = rounding.error(np.array([1 + 1 / 128, -1 - 1 / 128, 4.0, 0.0]), np.array([1.0, -1.0, 4 + 1 / 64, 0.0]))
    assert found.tolist() == [1.0, 1.0, -0.5, 0.0]


def tied(sign: int, small_sign: int) -> rounding.Counts:
    """Two keys at the maximum, whose values in [2, 4) add up to a number of bfloat16 or a tie; 12 of weight e^-12."""
    rng = np.random.default_rng(0)
    values = sign * (2 + 2 * rng.random((14, 512)))
    values[2:] *= small_sign
    logits = np.tile(np.r_[3.0, 3.0, np.full(12, -9.0)], (4, 1)) + np.r_[0.0, 0.0, rng.normal(size=12) / 4]
    return probe(logits, values)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_papers_example_is_biased_and_its_fix_is_not(sign):
    """Every second sum is a tie, which the small terms break: away from zero if they have the pair's sign.

    The mean of the pair is a tie too, which is what `ours` rounds. Small terms of the pair's size leave it one that
    either side may win; if they have the other sign, all outputs are rounded towards zero.
    """
    away, towards = (tied(sign, small).result()["error_of_shared"] for small in (1, -1))
    assert away["paper"] == pytest.approx(0.25, abs=0.03) and towards["paper"] == pytest.approx(-0.25, abs=0.03)
    assert abs(away["mitigated"]) < 0.06 and abs(towards["mitigated"]) < 0.06
    assert abs(away["ours"]) < 0.06 and towards["ours"] == pytest.approx(-0.25, abs=0.03)


def test_the_papers_maximum():
    logits = np.array([[2.0, 2.0, 1.0], [2.0, 1.0, 1.0], [-2.0, -2.0, -3.0], [-2.0, -3.0, -3.0]], np.float32)
    assert rounding.maximum(logits, mitigated=False).ravel().tolist() == [2, 2, -2, -2]
    assert rounding.maximum(logits, mitigated=True).ravel().tolist() == [4, 2, 0, -2]


def test_counts_add_up():
    one, other = tied(1, 1), tied(1, -1)
    both = one + other
    assert both.queries == 8 and both.shared_bf16 == 8 and both.values == one.values + other.values
    assert both.errors[0] == one.errors[0] + other.errors[0]
    assert rounding.Counts().result()["error_of_shared"] == dict.fromkeys(rounding.COMPUTATIONS)
