"""Greedy text of every family is transformers' own; a cache, chunks, padding and company in a batch change nothing."""

import dataclasses
import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from anchorjax import sharding
from anchorjax.errors import EvaluationError, UsageError, WeightsError
from anchorjax.inference import generation, language_model
from anchorjax.inference.batching import bucket
from anchorjax.inference.generation import Generator
from anchorjax.inference.sampling import Sampling, allowed_logits
from anchorjax.inference.scoring import Scorer
from anchorjax.models.decoder import logits
from tests.checkpoints.huggingface import tiny
from tests.checkpoints.huggingface.tiny import VOCABULARY
from tests.evaluation.making import write_tokenizer

NEW = 12
RNG = np.random.default_rng(1)
PROMPTS = [RNG.integers(3, VOCABULARY, size).tolist() for size in (21, 5, 34, 1)]


def one_device(description):
    return language_model.make_mesh(description.model, 1)


@pytest.fixture(scope="module", params=tiny.names())
def family(request, tmp_path_factory):
    """(transformers' model, the description of its directory)."""
    directory = tmp_path_factory.mktemp("model")
    theirs = tiny.make(request.param, directory)
    write_tokenizer(directory)
    return theirs, dataclasses.replace(language_model.describe(hf=directory), eos_ids=())


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    theirs = tiny.make("llama untied", directory)
    write_tokenizer(directory)
    return theirs, language_model.describe(hf=directory)


def generator(description, **options):
    return Generator(language_model.load(description, one_device(description)), **options)


def their_tokens(theirs, prompt, eos_token_id=None):
    out = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=eos_token_id, pad_token_id=2
    )
    return tuple(out[0, len(prompt) :].tolist())


def whole_pass_tokens(model, prompt, columns):
    """Greedy, each from a forward pass over all before it; dynamic and longrope RoPE go by `columns`."""
    spec, tokens = model.description.spec(columns), list(prompt)

    @jax.jit
    def next_token(params, tokens_BT, last):
        batch = tokens_BT, jnp.arange(columns, dtype=jnp.int32)[None], jnp.zeros_like(tokens_BT)
        batch = [jax.sharding.reshard(x, sharding.BATCH) for x in batch]
        hidden_BTD = params.hidden(*batch, spec)
        return jnp.argmax(logits(hidden_BTD, params.unembedding_DV(spec), spec.model.final_soft_cap)[0, last])

    with jax.set_mesh(model.mesh):
        for _ in range(NEW):
            row = np.zeros((1, columns), np.int32)
            row[0, : len(tokens)] = tokens
            tokens.append(int(next_token(model.params, row, len(tokens) - 1)))
    return tuple(tokens[len(prompt) :])


def test_greedy_text_of_ragged_prompts_is_that_of_transformers(family):
    theirs, description = family
    if description.rope.scaling in ("dynamic", "longrope"):
        pytest.skip("by the cache's length here, by the text's in transformers: see the next test")
    made = generator(description, batch_size=4, chunk=16).generate(PROMPTS, NEW)
    assert [one.tokens for one in made] == [their_tokens(theirs, prompt) for prompt in PROMPTS]
    assert {one.reason for one in made} == {"length"}


@pytest.mark.parametrize(
    "name", ["llama untied", *(name for name in tiny.names() if re.search("dynamic|longrope", name))]
)
def test_greedy_text_is_that_of_a_whole_forward_pass_at_every_step(name, tmp_path):
    tiny.make(name, tmp_path)
    write_tokenizer(tmp_path)
    description = dataclasses.replace(language_model.describe(hf=tmp_path, context=64), eos_ids=())
    model = language_model.load(description, one_device(description))
    expected = whole_pass_tokens(model, PROMPTS[0], bucket(32 + NEW))  # two chunks of 16, and the answer
    assert Generator(model, chunk=16).generate(PROMPTS[:1], NEW)[0].tokens == expected


@pytest.mark.parametrize("name", ["llama dynamic", "llama longrope"])
def test_company_changes_nothing_where_rope_goes_by_length(name, tmp_path):
    """Or an answer would be another one with other --batch-size, and beside other questions."""
    tiny.make(name, tmp_path)
    write_tokenizer(tmp_path)
    description = dataclasses.replace(language_model.describe(hf=tmp_path, context=64), eos_ids=())
    model = language_model.load(description, one_device(description))
    scores = [Scorer(model, batch_size).score(PROMPTS) for batch_size in (1, 4)]
    for alone, together in zip(*scores, strict=True):
        np.testing.assert_allclose(alone.nats_t, together.nats_t, rtol=1e-5)
    made = generator(description, batch_size=4)
    together = [one.tokens for one in made.generate(PROMPTS, NEW)]
    assert together == [made.generate([prompt], NEW)[0].tokens for prompt in PROMPTS]


def test_chunks_and_meshes_change_nothing(llama):
    _, description = llama
    expected = [one.tokens for one in generator(description, chunk=64).generate(PROMPTS, NEW)]
    for options in ({"chunk": 16}, {"batch_size": 3}, {"batch_size": 8, "chunk": 8}):
        assert [one.tokens for one in generator(description, **options).generate(PROMPTS, NEW)] == expected
    whole = Generator(language_model.load(description), batch_size=1)  # two heads on `tensor`, the rest on `fsdp`
    assert dict(whole.mesh.shape) == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    assert whole.batch_size == 4
    assert [one.tokens for one in whole.generate(PROMPTS, NEW)] == expected


def test_a_long_prompt_is_read_in_bounded_memory(llama):
    """128K tokens by chunks of 4096: never the scores of a chunk against all keys, in a cache that is sharded."""
    _, description = llama
    columns, chunk = 2**17, 4096
    description = dataclasses.replace(description, context=columns)
    made = Generator(language_model.load(description), chunk=chunk)
    spec = description.spec(columns)
    with jax.set_mesh(made.mesh):
        start_B = np.zeros(made.batch_size, np.int32)
        cache = jax.eval_shape(functools.partial(generation._empty_cache, spec=spec), start_B)
        tokens_BT = sharding.put(np.zeros((made.batch_size, chunk), np.int32), sharding.BATCH)
        step = functools.partial(generation._step.lower, spec=spec)
        compiled = step(made.params, cache, tokens_BT, Sampling().traced(), start_B, np.int32(0)).compile()
    assert cache.layers[0][0].sharding.spec == jax.P(("data", "fsdp"), None, "tensor", None)
    assert compiled.memory_analysis().temp_size_in_bytes < 2**26  # 36 MB; a byte for each score would be 537


def test_nothing_is_compiled_for_another_length_or_token(llama):
    _, description = llama
    made = generator(description, chunk=16)
    made.generate([PROMPTS[0]], NEW)
    before = generation._step._cache_size()
    for size in range(17, 32):
        made.generate([[*PROMPTS[2], *PROMPTS[2]][:size]], NEW)
    assert generation._step._cache_size() == before


def test_an_end_of_sequence_ends_a_text_but_not_its_neighbours(llama):
    theirs, description = llama
    plain = dataclasses.replace(description, eos_ids=())
    free = generator(plain).generate(PROMPTS, NEW)
    end = free[0].tokens[4]
    ended = generator(dataclasses.replace(description, eos_ids=(1, end)), batch_size=4).generate(PROMPTS, NEW)
    for one, other, prompt in zip(ended, free, PROMPTS, strict=True):
        cut = next((place for place, token in enumerate(other.tokens) if token in (1, end)), NEW)
        assert (one.tokens, one.reason) == (other.tokens[:cut], "stop" if cut < NEW else "length")
        assert their_tokens(theirs, prompt, [1, end])[:cut] == one.tokens


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("listed", [False, True])
def test_ends_are_found_where_transformers_finds_them(llama, tmp_path, where, listed):
    """In config.json alone, as converters and adapters merged by hand leave them; else in generation_config.json."""
    theirs, description = llama
    shutil.copytree(description.directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").unlink()
    end = generator(dataclasses.replace(description, eos_ids=())).generate(PROMPTS[:1], NEW)[0].tokens[4]
    fields = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": 1}
    for name, content in {"config.json": fields, where: fields if where == "config.json" else {}}.items():
        content |= {"eos_token_id": ([1, end] if listed else end)} if name == where else {}
        (tmp_path / name).write_text(json.dumps(content))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    ours = generator(language_model.describe(hf=tmp_path), batch_size=4).generate(PROMPTS, NEW)
    assert ours[0].reason == "stop"
    for one, prompt in zip(ours, PROMPTS, strict=True):
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, pad_token_id=2)
        made = out[0, len(prompt) :].tolist()
        ends = {1, end} & set(made)
        assert list(one.tokens) == made[: min(map(made.index, ends), default=NEW)]


def test_ends_that_are_no_ids_are_refused(llama, tmp_path):
    shutil.copytree(llama[1].directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").unlink()
    fields = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": [1, "2"]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(WeightsError, match=r"config.json: eos_token_id is \[1, '2'\]; allowed: token ids"):
        language_model.describe(hf=tmp_path)


def test_a_token_that_may_not_come_first_and_ends_a_text_later(llama):
    """As LongBench has it of newlines: transformers' min_length bars what ends a text."""
    theirs, description = llama
    first, later = generator(dataclasses.replace(description, eos_ids=())).generate([PROMPTS[0]], NEW)[0].tokens[:2]
    made = generator(dataclasses.replace(description, eos_ids=(later,)))
    one = made.generate([PROMPTS[0]], NEW, Sampling(not_first=(later, first)), stop_ids=(first,))[0]
    options = {"max_new_tokens": NEW, "min_length": len(PROMPTS[0]) + 1, "do_sample": False, "pad_token_id": 2}
    out = theirs.generate(torch.tensor([PROMPTS[0]]), eos_token_id=[later, first], **options)
    expected = out[0, len(PROMPTS[0]) :].tolist()
    assert expected[0] != first
    assert list(one.tokens) == (expected[:-1] if expected[-1] in (first, later) else expected)
    ends = made.generate([PROMPTS[0]], NEW, stop_ids=(first,))[0]
    assert (ends.tokens, ends.reason) == ((), "stop")


def test_stop_strings_and_streaming(llama):
    _, description = llama
    made = generator(dataclasses.replace(description, eos_ids=()), batch_size=2)
    text = made.generate([PROMPTS[0]], NEW)[0].text
    stop = text[5:7]
    heard = {0: "", 1: ""}

    def hear(number, new):
        heard[number] += new

    results = made.generate(PROMPTS[:2], NEW, stop=("never\N{BLACK CHESS PAWN}", stop), show=hear)
    assert results[0].text == text[: text.index(stop)] == heard[0]
    assert results[0].reason == "stop"
    assert results[1].text == heard[1]


def test_what_is_drawn_depends_on_seed_and_prompt_alone(llama):
    _, description = llama
    # Not 3: there two tokens are equal in fp32 in the third text, and a batch's last bits decide.
    sampling = Sampling(temperature=1.0, seed=5)
    alone = generator(description).generate(PROMPTS, NEW, sampling)
    assert alone == generator(description, batch_size=4).generate(PROMPTS, NEW, sampling)
    assert alone != generator(description).generate(PROMPTS, NEW, Sampling(temperature=1.0, seed=4))
    assert generator(description).generate(PROMPTS[2:], NEW, sampling, numbers=[2, 3]) == alone[2:]


def test_another_seed_temperature_or_top_p_compiles_nothing(llama):
    made = generator(llama[1])

    def text(**options) -> str:
        return made.generate(PROMPTS[:1], NEW, Sampling(**options))[0].text

    first = text(temperature=1.0, seed=2**63 - 1, top_p=0.9)
    before = generation._step._cache_size()
    texts = {text(temperature=1.0 + seed / 10, seed=seed, top_p=0.9 + seed / 100) for seed in range(4)}
    assert generation._step._cache_size() == before
    assert len(texts | {first}) == 5
    assert text(temperature=1.0, seed=2**63 - 1, top_p=0.9) == first


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        (Sampling(temperature=0.7), []),
        (Sampling(temperature=1.3, top_k=5), ["TopKLogitsWarper"]),
        (Sampling(temperature=0.9, top_p=0.8), ["TopPLogitsWarper"]),
        (Sampling(temperature=0.9, top_k=7, top_p=0.6), ["TopKLogitsWarper", "TopPLogitsWarper"]),
        (Sampling(temperature=1.0, top_k=1000), ["TopKLogitsWarper"]),
    ],
)
def test_allowed_tokens_are_those_of_transformers(sampling, warpers):
    import transformers

    logits_V = np.random.default_rng(0).normal(0, 3, 50).astype(np.float32)
    scores = torch.tensor(logits_V)[None] / sampling.temperature
    for name in warpers:
        option = sampling.top_k if "TopK" in name else sampling.top_p
        scores = getattr(transformers, name)(option)(None, scores)
    ours = jax.nn.softmax(allowed_logits(jnp.asarray(logits_V), sampling.traced()))
    np.testing.assert_allclose(ours, torch.softmax(scores[0], -1).numpy(), rtol=1e-5)


def test_requests_that_cannot_be_met(llama):
    _, description = llama
    made = generator(description)
    with pytest.raises(
        UsageError, match=r"a prompt of 250 tokens and 12 new ones are more than the model's context of"
    ):
        made.generate([[5] * 250], NEW)
    with pytest.raises(UsageError, match="a prompt is empty"):
        made.generate([[5], []], NEW)
    with pytest.raises(EvaluationError, match=f"gives the token {VOCABULARY + 3}, and the model knows {VOCABULARY}"):
        made.generate([[5], [VOCABULARY + 3]], NEW)
    with pytest.raises(UsageError, match="--max-new-tokens=0 is not allowed"):
        made.generate([[5]], 0)
    with pytest.raises(UsageError, match=r"--top-p=0 is not allowed: it must be above 0 and at most 1"):
        Sampling(top_p=0)
