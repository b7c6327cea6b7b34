"""Entropy-ABF: t by hand, exempt layers, one rounding, transformers, and the same in training and decoding."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from anchorjax.attention import reference
from anchorjax.checkpoints.pretrained import Pretrained
from anchorjax.config import KEYS, SIZES, recipe, resolve
from anchorjax.errors import ConfigError
from anchorjax.masks import Mask
from anchorjax.models.decoder import masks_of_kinds
from anchorjax.models.variants import plain
from anchorjax.training.setup import Setup
from tests import tiny as settings
from tests.checkpoints.huggingface import tiny
from tests.methods.making import decoded, factors_of, make, put, run, scaled_spec
from tests.training.making import make_mesh

T = 48
#                  A  document 1    document 2     document 3     pads
SEGMENTS = np.array([0] + [1] * 15 + [2] * 10 + [3] * 16 + [-1] * 6)
TOKENS = np.random.default_rng(0).integers(0, 64, (2, T))


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(make_mesh()):
        yield


def test_t_is_that_of_the_paper():
    positions = [0, 1, 4094, 4095, 4096, 8191, 16383, 32767]
    found = factors_of(positions, np.zeros(8), scaled_spec("entropy_abf", 2**15, length=4096))
    np.testing.assert_allclose(found[:4], 1, rtol=2e-7)
    np.testing.assert_allclose(found[4:], [1.0000293, 1.0833333, 1.1666667, 1.25], rtol=2e-7)
    assert found[4] > 1


def test_attention_without_preference_has_the_entropy_that_the_logarithm_stands_for():
    q, k = jnp.zeros((1, 1, 1, 16)), jnp.ones((1, 4096, 1, 16))
    mask = Mask(*(jnp.asarray(x)[None] for x in ([0], [0] * 4096, [4095], range(4096))), num_anchors=0)
    weights, _ = reference.softmax(reference.logits(q, k, mask))
    entropy = -jnp.sum(jax.scipy.special.xlogy(weights, weights))
    assert float(entropy) == pytest.approx(8.3178, abs=5e-5) and float(entropy) == pytest.approx(math.log(4096))


def test_by_visible_keys_t_goes_by_documents_windows_and_the_anchor():
    spec = scaled_spec("entropy_abf", T, length=3, by="visible")
    in_document = np.concatenate([[-1], np.arange(15), np.arange(10), np.arange(16), np.full(6, -2)])
    visible = in_document + 2  # itself and the anchor; the anchor itself sees one key, padding none
    positions = (np.arange(T) + 7) % T  # take no part
    found = factors_of(positions, SEGMENTS, spec)
    np.testing.assert_allclose(found, np.maximum(np.log(np.maximum(visible, 1)) / math.log(3), 1), rtol=2e-7)
    window = factors_of(positions, SEGMENTS, spec, window=5)
    seen = np.where(in_document >= 0, np.minimum(in_document + 1, 5) + 1, 1)
    np.testing.assert_allclose(window, np.maximum(np.log(seen) / math.log(3), 1), rtol=2e-7)
    assert window.max() < found.max()


def test_of_one_document_behind_one_anchor_visible_keys_are_positions():
    batch = put(TOKENS, [range(T)] * 2, np.minimum(np.arange(T), 1)[None].repeat(2, 0))
    specs = [scaled_spec("entropy_abf", T, length=8, by=by) for by in ("position", "visible")]
    params = make(specs[0])
    by_position, by_visible = (run(params, *batch, spec) for spec in specs)
    np.testing.assert_array_equal(by_position, by_visible)
    assert np.abs(by_position - run(params, *batch, scaled_spec("none", T, 0))).max() > 1e-3


@pytest.mark.parametrize("first", [0, 1, 2])
def test_layers_before_the_first_are_exempt(first):
    """Their attention is that of a plain model, bit for bit, and the first that is scaled differs behind c alone."""
    length = 8

    @functools.partial(jax.jit, static_argnames="spec")
    def outputs_of_layers(params, tokens_BT, positions_BT, segment_ids_BT, spec):
        (mask,) = masks_of_kinds(Mask.from_segments(segment_ids_BT, spec.num_anchors), spec)
        contexts = plain.contexts([mask], positions_BT, spec)

        def attend(*q_k_v, **named):
            out_BTNH, _ = plain.attend(*q_k_v, **named)
            return out_BTNH, out_BTNH

        return params.through_blocks(tokens_BT, contexts, attend, spec)[1]

    batch = put(TOKENS, [range(T)] * 2, np.zeros((2, T)))
    plain_spec, spec = scaled_spec("none", T, 0), scaled_spec("entropy_abf", T, length, first)
    params = make(spec)
    theirs_LBTNH, ours_LBTNH = (np.asarray(outputs_of_layers(params, *batch, x)) for x in (plain_spec, spec))
    np.testing.assert_array_equal(ours_LBTNH[:first], theirs_LBTNH[:first])
    np.testing.assert_array_equal(ours_LBTNH[first, :, :length], theirs_LBTNH[first, :, :length])
    assert np.all(np.abs(ours_LBTNH[first, :, length:] - theirs_LBTNH[first, :, length:]).max((0, 2, 3)) > 0)


def test_queries_in_bfloat16_are_rounded_once():
    """Against float64. A t that bfloat16 holds, 1.1641 for 1.1667, would move a fifth of them."""
    spec = scaled_spec("entropy_abf", 2**14, length=4096, compute_dtype="bfloat16")
    positions_BT, segment_ids_BT = put([[16383]], [[0]])
    mask = Mask.from_segments(segment_ids_BT, 1)
    (context,) = plain.contexts([mask], positions_BT, spec)
    np.testing.assert_allclose(context.scale_BT, 7 / 6, rtol=2e-7)
    rng = np.random.default_rng(0)
    q_BTNH = jnp.asarray(rng.standard_normal((1, 1, 512, 16)), jnp.bfloat16)
    found_BTNH, _ = plain.rotated(q_BTNH, q_BTNH, context, spec, layer=2)
    low, high = np.split(np.asarray(q_BTNH, np.float64), 2, -1)
    angle_h = 16383 * spec.rope.theta ** (-np.arange(0, 16, 2) / 16)
    turned = [low * np.cos(angle_h) - high * np.sin(angle_h), high * np.cos(angle_h) + low * np.sin(angle_h)]
    exact = np.concatenate(turned, -1)
    rounded = {t: np.asarray(jnp.asarray(t * exact, jnp.bfloat16), np.float64) for t in (7 / 6, 1.1640625)}
    found = np.asarray(found_BTNH, np.float64)
    assert np.mean(found != rounded[7 / 6]) < 1e-3 and np.mean(rounded[1.1640625] != rounded[7 / 6]) > 0.1


@pytest.mark.parametrize("by", ["position", "visible"])
@pytest.mark.parametrize(("name", "first"), [("llama untied", 1), ("gemma2", 0), ("qwen3", 1)])
def test_logits_are_those_of_transformers_with_scaled_queries(name, first, by, tmp_path):
    """Gemma 2 has a softcap behind the scale and windows in every other layer, Qwen 3 norms before it."""
    length = 5
    pair = tiny.pair(name, tmp_path)
    attention = dataclasses.replace(
        pair.spec.attention,
        logit_scale="entropy_abf",
        logit_scale_by=by,
        logit_scale_length=length,
        logit_scale_from=first,
    )
    spec = dataclasses.replace(pair.spec, attention=attention)

    def scale_queries(module, _, output):
        keys = np.arange(1, tiny.T + 1)
        if by == "visible" and getattr(module.owner[0], "sliding_window", None):
            keys = np.minimum(keys, module.owner[0].sliding_window)
        return output * torch.tensor(np.maximum(np.log(keys) / np.log(length), 1), dtype=output.dtype)[:, None]

    for layer in pair.theirs.model.layers[first:]:
        attention = layer.self_attn
        scaled = attention.q_norm if name == "qwen3" else attention.q_proj
        scaled.owner = [attention]  # in a list, or it would be a submodule
        if name == "qwen3":  # [B, T, heads, H]
            scaled.register_forward_hook(lambda m, i, o: scale_queries(m, i, o.flatten(2)).view_as(o))
        else:
            scaled.register_forward_hook(scale_queries)
    tokens = np.random.default_rng(0).integers(0, tiny.VOCABULARY, (2, tiny.T))
    batch = put(tokens, [range(tiny.T)] * 2, np.zeros((2, tiny.T)))
    wanted = pair.theirs(torch.tensor(tokens)).logits.detach().numpy()
    found, without = (np.asarray(run(pair.ours, *batch, x)) for x in (spec, pair.spec))
    assert np.abs(found - wanted).max() < 2e-4 * wanted.std()
    assert np.abs(without - wanted).max() > 1e-2 * wanted.std()


@pytest.mark.parametrize("by", ["position", "visible"])
def test_decoding_gives_what_whole_rows_give(by):
    """With kinds of layers, a softcap, and padding in front of one of the rows."""
    kinds = {"sliding_window": 6, "global_every": 2, "attention_soft_cap": 2.0, "qk_norm": True}
    spec = scaled_spec("entropy_abf", T, length=4, first=1, by=by, **kinds)
    start_B = np.array([0, 5])
    params = make(spec)
    shifted = np.stack([np.roll(row, -start) for row, start in zip(TOKENS, start_B, strict=True)])
    whole = np.asarray(run(params, *put(shifted, [range(T)] * 2, np.zeros((2, T))), spec))
    found = decoded(params, TOKENS, start_B, chunk=16, spec=spec)
    for row, start in enumerate(start_B):
        np.testing.assert_allclose(found[row], whole[row, 15 - start : T - start], atol=2e-5)


def test_a_packed_document_is_that_document_alone_if_t_goes_by_visible_keys():
    """Without an anchor, to which its distance would be another one alone."""
    document, found = slice(16, 26), {}
    for by in ("position", "visible"):
        spec = dataclasses.replace(scaled_spec("entropy_abf", T, length=4, by=by), num_anchors=0)
        params = make(spec)
        packed = run(params, *put(TOKENS, [range(T)] * 2, SEGMENTS[None].repeat(2, 0)), spec)[:, document]
        alone = run(params, *put(TOKENS[:, document], [range(10)] * 2, np.zeros((2, 10))), spec)
        found[by] = np.abs(np.asarray(packed) - np.asarray(alone)).max()
    assert found["visible"] < 1e-5 and found["position"] > 1e-3


ON = {"attention__logit_scale": "entropy_abf", "attention__logit_scale_from": 1}


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"attention__logit_scale_by": "visible"}, "attention.logit_scale_by"),
        ({"attention__logit_scale_length": 4096}, "attention.logit_scale_length"),
        (ON | {"attention__logit_scale_length": 1}, "attention.logit_scale_length"),
        (ON | {"attention__logit_scale_from": 2}, "attention.logit_scale_from"),
        (ON | {"rope__dtype": "bfloat16"}, "rope.dtype"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_key(overrides, key):
    with pytest.raises(ConfigError) as refused:
        settings.config(**overrides)
    assert refused.value.key == key and "\n" not in str(refused.value)


def test_the_length_is_the_checkpoint_s_and_is_saved(tmp_path):
    assert Setup.make(settings.config(**ON, data__batch_size=8)).saved.attention.logit_scale_length == 64
    tiny.make("llama", tmp_path)  # of 256 positions
    ours = {f"model__{name}": 0 for name in (*SIZES, "vocab_size", "norm_eps")}
    config = settings.config(**ON, **ours, rope__scaling="auto", init_from=str(tmp_path))
    pretrained = Pretrained.open(tmp_path)
    assert pretrained.complete(config).attention.logit_scale_length == 256
    given = dataclasses.replace(config.attention, logit_scale_length=100)
    assert pretrained.complete(dataclasses.replace(config, attention=given)).attention == given
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=r"attention.logit_scale_length=0 .*names no max_position_embeddings"):
        Pretrained.open(tmp_path).complete(config)


def test_runs_keep_their_scale():
    """A resumed run may not change it."""
    named = [key for name, key in KEYS.items() if name.startswith("attention.logit_scale")]
    assert len(named) == 4 and {key.resume for key in named} == {"fixed"}


def test_the_recipe_keeps_the_authors_values():
    config = resolve(recipe("methods/entropy_abf").to_dict())
    assert config.attention.logit_scale_from == 2 and config.rope.theta == 5e5 and config.data.seq_len > 8192
