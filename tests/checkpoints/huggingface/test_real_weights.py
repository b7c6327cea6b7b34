"""A real model, SmolLM2-135M-Instruct, on real text: the same numbers as transformers, in and out."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers

from anchorjax import sharding
from anchorjax.checkpoints.huggingface import checkpoint as hf_checkpoint
from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.checkpoints.huggingface.weights import Weights
from anchorjax.data import sources
from anchorjax.data.text import tokenizer
from anchorjax.data.text.chat import ChatTemplate
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator
from anchorjax.models.decoder import Decoder, logits
from tests import smollm2
from tests.models.making import spec_of
from tests.training.jobs import ROOT

TOKENS, NEW = 512, 24


@pytest.fixture(scope="module")
def directory():
    return smollm2.require("float32")


@pytest.fixture(scope="module")
def texts(data_dir):
    """The first chapter of Austen and the last of the Bible that are held out."""
    documents = sources.load("public_domain", "validation", data_dir)
    return [documents[0]["text"], documents[len(documents) - 1]["text"]]


@pytest.fixture(scope="module")
def tokens_BT(directory, texts):
    """Two rows of real text, of an Austen and of a Bible chapter."""
    encoded = tokenizer.load(str(directory)).encode_batch(texts)
    assert min(map(len, encoded)) >= TOKENS
    return np.stack([ids[:TOKENS] for ids in encoded])


@dataclasses.dataclass
class Model:
    """Ours, on one device."""

    params: Decoder
    spec: object
    mesh: jax.sharding.Mesh

    def logits(self, tokens_BT) -> np.ndarray:
        put = lambda x: jax.device_put(x, jax.NamedSharding(self.mesh, sharding.BATCH))  # noqa: E731
        positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
        arrays = [put(x) for x in (tokens_BT, positions_BT, np.zeros_like(tokens_BT))]
        with jax.set_mesh(self.mesh):
            return np.asarray(self._run(self.params, *arrays))

    def __post_init__(self):
        @jax.jit
        def run(params, tokens_BT, positions_BT, segment_ids_BT):
            hidden_BTD = params.hidden(tokens_BT, positions_BT, segment_ids_BT, self.spec)
            return logits(hidden_BTD, params.unembedding_DV(self.spec))

        self._run = run


@pytest.fixture(scope="module")
def model(directory):
    fields, rope = hf_config.read(hf_config.load(directory))
    spec = spec_of(
        {**fields, "compute_dtype": "float32"}, rope=rope, tiles=(256, 256), num_anchors=0, max_position=TOKENS
    )
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = jax.jit(lambda: Decoder(jax.random.key(0), spec))()
        params = hf_checkpoint.load(params, spec.model, Weights.open(directory))
    return Model(params, spec, mesh)


@pytest.fixture(scope="module")
def ours_BTV(model, tokens_BT):
    return model.logits(tokens_BT)


@pytest.fixture(scope="module")
def theirs(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    assert type(model) is transformers.LlamaForCausalLM
    return model


@pytest.fixture(scope="module")
def theirs_BTV(theirs, tokens_BT):
    with torch.inference_mode():
        return theirs(torch.tensor(tokens_BT).long()).logits.numpy()


def perplexity(logits_BTV, tokens_BT) -> float:
    """Perplexity of every token but the first, in float64 on the host."""
    logits_BTV = np.asarray(logits_BTV[:, :-1], np.float64)
    top_BT1 = logits_BTV.max(-1, keepdims=True)
    lse_BT = (top_BT1 + np.log(np.exp(logits_BTV - top_BT1).sum(-1, keepdims=True)))[..., 0]
    target_BT = np.take_along_axis(logits_BTV, tokens_BT[:, 1:, None], -1)[..., 0]
    return math.exp((lse_BT - target_BT).mean())


def test_logits_are_those_of_transformers(ours_BTV, theirs_BTV):
    assert np.abs(ours_BTV - theirs_BTV).max() < 2e-4 * theirs_BTV.std()


def test_perplexity_on_real_text_is_that_of_transformers(ours_BTV, theirs_BTV, tokens_BT):
    ours, theirs = perplexity(ours_BTV, tokens_BT), perplexity(theirs_BTV, tokens_BT)
    assert f"{ours:.4g}" == f"{theirs:.4g}"
    assert 10 < ours < 60  # of a model that has learnt English; a random one has 49152


def test_greedy_text_is_that_of_transformers(directory, model, theirs):
    """A question in the chat format and the beginning of a sentence, side by side: ragged prompts in one batch."""
    description = language_model.describe(hf=directory)
    turns = ChatTemplate.open(directory).render([{"role": "user", "content": "What is the capital of France?"}])
    prompts = [
        description.tokenizer.encode_with_specials(text).tolist() for text in (turns, "It is a truth universally")
    ]
    loaded = language_model.load(description, model.mesh)  # its own: a generator uses weights up
    generator = Generator(loaded, batch_size=2)
    made = generator.generate(prompts, NEW)
    for prompt, one in zip(prompts, made, strict=True):
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)[0, len(prompt) :].tolist()
        assert list(one.tokens) == [token for token in out if token not in description.eos_ids]
    assert made[0].text == "The capital of France is Paris." and made[0].reason == "stop"


def test_queries_and_keys_in_the_order_of_gguf_are_noticed(model, ours_BTV, tokens_BT):
    """Halves instead of neighbours: the fault of every first converter. The model still runs, and is far worse."""
    attention = model.params.blocks.attention
    kept = {name: getattr(attention, name).weight[...] for name in "qk"}
    try:
        for name, weight_LDNH in kept.items():
            half = weight_LDNH.reshape(*weight_LDNH.shape[:-1], 2, -1)
            getattr(attention, name).weight[...] = half.swapaxes(-1, -2).reshape(weight_LDNH.shape)
        wrong = perplexity(model.logits(tokens_BT), tokens_BT)
    finally:
        for name, weight_LDNH in kept.items():
            getattr(attention, name).weight[...] = weight_LDNH
    assert wrong > 5 * perplexity(ours_BTV, tokens_BT)


def test_token_ids_are_those_of_transformers(directory, data_dir):
    """On every held-out document of the corpus, and where digits, spaces, other scripts and specials' names occur."""
    ours = tokenizer.load(str(directory))
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    documents = sources.load("public_domain", "validation", data_dir)
    texts = [document["text"] for document in documents]
    texts += ["In 1811, 21 x 3.1415 = 66", "  two  spaces\n\n\ttabs ", "naïve café, “quoted” — 日本語 🙂", "don't I'LL"]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == text
    named = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == named == (1, 2, 2)
    assert ours.vocab_size == len(theirs) == 49152


def same_weights(one, other) -> bool:
    before, after = Weights.open(one), Weights.open(other)
    assert {name: info.dtype for name, info in before.tensors.items()} == {
        name: info.dtype for name, info in after.tensors.items()
    }
    return all(before.read(name).tobytes() == after.read(name).tobytes() for name in before.tensors)


def test_exported_weights_are_the_imported_ones_bit_for_bit_and_load_in_transformers(directory, model, tmp_path):
    with jax.set_mesh(model.mesh):
        hf_checkpoint.save(model.params, model.spec.model, model.spec.lora, tmp_path, "float32")
    assert same_weights(directory, tmp_path)
    written = hf_config.write(model.spec.model, model.spec.rope, max_position=8192, dtype="float32", source={})
    (tmp_path / "config.json").write_text(json.dumps(written))
    load = functools.partial(transformers.AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    theirs, report = load(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for (name, ours), original in zip(theirs.named_parameters(), load(directory).parameters(), strict=True):
        assert torch.equal(ours, original), name


def test_convert_there_and_back_gives_the_same_checkpoint(tmp_path):
    """By the command that users run, in bfloat16, as models are published."""
    directory, ours, back = smollm2.require("bfloat16"), tmp_path / "ours", tmp_path / "back"
    env = os.environ | {"XLA_FLAGS": ""}
    for arguments in (("from-hf", directory, ours), ("to-hf", ours, back)):
        command = [sys.executable, "-m", "anchorjax", "convert", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    assert same_weights(directory, back)
    assert (back / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()
    assert hf_config.read(hf_config.load(back)) == hf_config.read(hf_config.load(directory))
