"""FocusLLM's generation: chunks encoded once give the text that the paper's loop gives, for prompts of any length."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from anchorjax.config import FocusConfig
from anchorjax.errors import UsageError
from anchorjax.inference import focus as inference_focus
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator
from anchorjax.inference.language_model import LanguageModel
from anchorjax.inference.scoring import Scorer
from anchorjax.models.decoder import Decoder
from anchorjax.models.linear import named_leaves
from tests.checkpoints.huggingface import tiny
from tests.checkpoints.huggingface.tiny import VOCABULARY
from tests.evaluation.making import write_tokenizer
from tests.methods import focus_reference
from tests.methods.making_focus import torch_candidates

FOCUS, NEW, CONTEXT = FocusConfig(chunk=10, local=12, prompt=4), 8, 48
LENGTHS = (23, 12, 4 * CONTEXT, 61, 22)  # 1, 0, 17, 4 and 0 chunks


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(transformers' model, the description with FocusLLM, weights with other projections than the copies)."""
    directory = tmp_path_factory.mktemp("model")
    theirs = tiny.make("llama untied", directory).eval()
    write_tokenizer(directory)
    description = dataclasses.replace(language_model.describe(hf=directory, context=CONTEXT), eos_ids=(), focus=FOCUS)
    return theirs, description


def model_of(description, devices=1) -> LanguageModel:
    mesh = language_model.make_mesh(description.model, devices)
    with jax.set_mesh(mesh):
        params = language_model.load(description, mesh).params
        drawn = jax.jit(lambda: Decoder(jax.random.key(7), description.spec(CONTEXT)))()
    leaves, others = named_leaves(params), named_leaves(drawn)
    leaves |= {name: leaf for name, leaf in others.items() if ".candidate." in name}
    return LanguageModel(description, jax.tree.unflatten(jax.tree.structure(params), leaves.values()), mesh, None)


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(3, VOCABULARY, size).tolist() for size in LENGTHS]


def reference_tokens(theirs, candidates, prompt) -> tuple[int, ...]:
    rest = len(prompt) - 1 - FOCUS.chunks(len(prompt)) * FOCUS.chunk
    made = []
    with torch.no_grad():
        for _ in range(NEW):
            sizes = {"chunk": FOCUS.chunk, "prompt": min(rest, FOCUS.prompt), "prompt_end": rest}
            row = prompt + made
            logits, _ = focus_reference.forward(theirs, candidates, row, local=rest + len(made), **sizes)
            made.append(int(logits[-1].argmax()))
    return tuple(made)


@pytest.mark.parametrize("devices", [1, 4])
def test_greedy_text_is_that_of_the_paper_s_loop(made, devices, monkeypatch):
    """Prompts of up to four times the context, in groups of four chunks, some in one batch with shorter ones."""
    monkeypatch.setattr(inference_focus, "GROUP", 4 * (FOCUS.chunk + FOCUS.prompt))
    theirs, description = made
    model = model_of(description, devices)
    candidates = torch_candidates(model.params, description.model.num_layers)
    wanted = [reference_tokens(theirs, candidates, prompt) for prompt in prompts()]
    found = Generator(model, batch_size=3, chunk=16).generate(prompts(), NEW)
    assert [one.tokens for one in found] == wanted


def test_each_chunk_is_encoded_once(made, monkeypatch):
    _, description = made
    calls = []
    encode = inference_focus._encode
    monkeypatch.setattr(
        inference_focus, "_encode", lambda *args, **named: calls.append(args[3]) or encode(*args, **named)
    )
    Generator(model_of(description)).generate(prompts()[2:3], NEW)
    assert [x.shape for x in calls] == [(1, 32, 10)]  # 17 chunks in one group of 32 places


def test_what_does_not_fit_is_refused(made):
    _, description = made
    generator = Generator(model_of(description))
    with pytest.raises(UsageError, match="columns"):
        generator.generate([[5] * 400], NEW)
    with pytest.raises(UsageError, match="cannot be scored"):
        Scorer(model_of(description))
