"""Ours and transformers' models of the same checkpoint: logits, gradients, packed rows, and the way back."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from anchorjax import sharding
from anchorjax.checkpoints.huggingface import checkpoint as hf_checkpoint
from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.checkpoints.huggingface.weights import Weights
from anchorjax.config import AttentionConfig
from anchorjax.masks import Mask
from anchorjax.models.decoder import logits
from anchorjax.models.linear import named_leaves
from tests.checkpoints.huggingface import tiny
from tests.checkpoints.huggingface.tiny import VOCABULARY, T

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, T)).astype(np.int32)
COUNTING = np.broadcast_to(np.arange(T, dtype=np.int32), (2, T))
# An anchor; documents of 20, 15 and 8 tokens, the second behind the third's first tokens; pads.
SEGMENTS = np.array([0] + [1] * 20 + [3] * 3 + [2] * 15 + [3] * 5 + [-1] * 4, np.int32)[None].repeat(2, 0)
POSITIONS = np.array([[0, *range(1, 21), *range(17, 20), *range(33, T), *range(20, 25), 0, 0, 0, 0]] * 2, np.int32)
TARGETS = SEGMENTS[:, :-1] == SEGMENTS[:, 1:]
TARGETS &= SEGMENTS[:, 1:] >= 0


@pytest.fixture(scope="module")
def mesh():
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture(scope="module", params=tiny.names())
def pair(request, mesh, tmp_path_factory):
    return tiny.pair(request.param, tmp_path_factory.mktemp("model"))


@functools.partial(jax.jit, static_argnames="spec")
def our_logits(params, tokens, positions, segments, spec):
    hidden = params.hidden(tokens, positions, segments, spec)
    return logits(hidden, params.unembedding_DV(spec), spec.model.final_soft_cap)


@functools.partial(jax.jit, static_argnames="spec")
def packed_gradients(params, tokens, positions, segments, targets, spec):
    """Gradients of the mean cross-entropy, and the logits."""

    def loss(params):
        with_anchor = dataclasses.replace(spec, num_anchors=1)
        logits_BTV = our_logits(params, tokens, positions, segments, with_anchor)
        next_tokens = jax.nn.one_hot(jnp.asarray(TOKENS[:, 1:]), VOCABULARY) * targets[..., None]
        likelihoods = jax.nn.log_softmax(logits_BTV[:, :-1])
        return -jnp.sum(likelihoods * next_tokens) / jnp.sum(targets), logits_BTV

    return jax.grad(loss, has_aux=True)(params)


def on(mesh, *arrays):
    return (jax.device_put(x, jax.NamedSharding(mesh, sharding.BATCH)) for x in arrays)


def assert_near(got, wanted):
    """2e-4 of their spread."""
    wanted = wanted.detach().numpy()
    assert np.abs(np.asarray(got) - wanted).max() < 2e-4 * wanted.std()


def test_logits_are_those_of_transformers(pair, mesh):
    got = our_logits(pair.ours, *on(mesh, TOKENS, COUNTING, np.zeros_like(TOKENS)), pair.spec)
    assert_near(got, pair.theirs(torch.tensor(TOKENS).long()).logits)


def their_masks(spec):
    """What is added to the scores [B, 1, T, T], by the kind of layer where there are two."""

    def mask(window):
        allowed = Mask.from_segments(jnp.asarray(SEGMENTS), 1, window).materialize()
        return torch.where(torch.tensor(np.asarray(allowed))[:, None], 0.0, torch.finfo(torch.float32).min)

    window = spec.model.sliding_window or None
    if spec.model.global_every or spec.model.family.startswith("qwen"):  # their forward takes no other
        return {"full_attention": mask(None), "sliding_attention": mask(window)}
    return mask(window)


@pytest.fixture(scope="module")
def packed(pair, mesh):
    """Our gradients and logits of documents behind an anchor, and theirs, which are left in the model."""
    # The attention that compiles fastest; tests/attention holds the others to it.
    spec = dataclasses.replace(pair.spec, attention=AttentionConfig("reference", 8, 8))
    ours = packed_gradients(pair.ours, *on(mesh, TOKENS, POSITIONS, SEGMENTS), TARGETS, spec)
    pair.theirs.zero_grad()
    tokens = torch.tensor(TOKENS).long()
    inputs = {"attention_mask": their_masks(pair.spec), "position_ids": torch.tensor(POSITIONS).long()}
    theirs = pair.theirs(tokens, **inputs).logits
    targets = torch.where(torch.tensor(TARGETS), tokens[:, 1:], -100)
    torch.nn.functional.cross_entropy(theirs[:, :-1].flatten(0, 1), targets.flatten()).backward()
    return *ours, theirs


def test_packed_documents_have_the_logits_of_transformers(packed):
    _, ours, theirs = packed
    real = SEGMENTS >= 0
    assert_near(np.asarray(ours)[real], theirs[real])


def test_every_weight_has_the_gradient_of_transformers(pair, packed):
    gradients = named_leaves(packed[0])
    theirs = dict(pair.theirs.named_parameters())
    places = hf_checkpoint.places(pair.ours, pair.spec.model)
    assert places.keys() == theirs.keys()
    for name, place in places.items():
        x = np.asarray(gradients[place.leaf])
        got = place.to_checkpoint(x if place.layer is None else x[place.layer])
        wanted = theirs[name].grad.numpy()
        assert got.shape == wanted.shape
        assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted), name


def export(params, spec, directory, dtype="float32", source=None):
    directory.mkdir()
    hf_checkpoint.save(params, spec.model, spec.lora, directory, dtype)
    fields = hf_config.write(spec.model, spec.rope, max_position=256, dtype=dtype, source=source or {})
    (directory / hf_config.FILE).write_text(json.dumps(fields))


def test_what_is_exported_has_bitwise_the_logits_of_the_original(pair, tmp_path):
    export(pair.ours, pair.spec, tmp_path / "out")
    assert hf_config.read(hf_config.load(tmp_path / "out")) == hf_config.read(hf_config.load(pair.directory))
    exported, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values())
    tokens = torch.tensor(TOKENS).long()
    assert torch.equal(exported(tokens).logits, pair.theirs(tokens).logits)


@pytest.mark.parametrize("dtype", hf_checkpoint.DTYPES)
@pytest.mark.parametrize("name", ["llama untied", "qwen2", "gemma3"])
def test_weights_come_back_bit_for_bit(name, dtype, mesh, tmp_path):
    """float16 travels as float32, which holds all of its values."""
    tiny.make(name, tmp_path / "in", getattr(torch, dtype))
    spec = tiny.read(tmp_path / "in", param_dtype="bfloat16" if dtype == "bfloat16" else "float32")
    params = tiny.load(tmp_path / "in", spec)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {spec.model.param_dtype}
    export(params, spec, tmp_path / "out", dtype)
    before, after = (Weights.open(tmp_path / side) for side in ("in", "out"))
    assert before.tensors.keys() == after.tensors.keys()
    for tensor in before.tensors:
        was, came = before.read(tensor), after.read(tensor)
        assert (came.dtype, came.shape, came.tobytes()) == (was.dtype, was.shape, was.tobytes()), tensor
