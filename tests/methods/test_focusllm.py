"""FocusLLM: what a candidate is made of, what it may see and who learns, against the paper chunk by chunk."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax.checkpoints.huggingface import checkpoint as hf_checkpoint
from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.config import FocusConfig
from anchorjax.models import focus
from anchorjax.models.decoder import Decoder, logits
from anchorjax.models.linear import named_leaves
from anchorjax.sharding import BATCH, WHOLE_ROWS, put
from tests.models.making import spec_of
from tests.training.making import make_mesh

MODEL = {
    "family": "llama",
    "num_layers": 2,
    "d_model": 32,
    "d_ff": 48,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "norm_eps": 1e-5,
    "compute_dtype": "float32",
}
FOCUS = FocusConfig(chunk=4, local=6, prompt=3)
T = 1 + 3 * 4 + 6


def spec_with(section: FocusConfig, **model):
    return dataclasses.replace(spec_of(MODEL | model, tiles=(16, 16)), focus=section)


SPEC = spec_with(FOCUS)


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(make_mesh(1)):
        yield


def tokens_of(B: int = 2, length: int = T, seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(2, MODEL["vocab_size"], (B, length)).astype(np.int32)
    tokens[:, 0] = 1
    return tokens


def drawn(spec, scale: float = 0.0) -> Decoder:
    """A decoder whose candidate projections are copies, or by `scale` others than these."""
    params = jax.jit(lambda: Decoder(jax.random.key(3), spec))()
    leaves = named_leaves(params)
    for name, leaf in leaves.items():
        if ".candidate." in name:
            leaves[name] = leaf + scale * jax.random.normal(jax.random.key(len(name)), leaf.shape)
    return jax.tree.unflatten(jax.tree.structure(params), leaves.values())


def logits_of(params, tokens, spec) -> jax.Array:
    return _logits(params, put(tokens, BATCH), spec)


@functools.partial(jax.jit, static_argnames="spec")
def _logits(params, tokens_BT, spec):
    return logits(focus.hidden(params, tokens_BT, spec), params.unembedding_DV(spec))


def transformers_model(params, spec, tmp_path):
    transformers = pytest.importorskip("transformers")
    hf_checkpoint.save(params, spec.model, spec.lora, tmp_path, "float32")
    fields = hf_config.write(spec.model, spec.rope, max_position=48, dtype="float32", source={})
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return transformers.LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("section", [FOCUS, dataclasses.replace(FOCUS, targets=1), FocusConfig(12, 6, 6)])
def test_one_packed_pass_is_the_paper_s_chunk_by_chunk_in_torch(section, implementation, tmp_path):
    torch = pytest.importorskip("torch")
    from tests.methods import focus_reference
    from tests.methods.making_focus import torch_candidates

    spec = spec_with(section)
    spec = dataclasses.replace(spec, attention=dataclasses.replace(spec.attention, implementation=implementation))
    params, tokens = drawn(spec, 0.2), tokens_of()
    found = logits_of(params, tokens, spec)
    model, candidates = transformers_model(params, spec, tmp_path), torch_candidates(params, MODEL["num_layers"])
    sizes = {name: getattr(section, name) for name in ("chunk", "local", "prompt", "prompt_end")}
    with torch.no_grad():
        wanted, widths = zip(*(focus_reference.forward(model, candidates, row, **sizes) for row in tokens), strict=True)
    np.testing.assert_allclose(found, np.stack([x.numpy() for x in wanted]), atol=2e-5)
    assert set(widths) == {section.chunks(T) + 1 + section.local}


def test_oracle_of_ten_tokens():
    """c=4, local=2: two documents of 7 tokens with the anchor, candidates at position 6, attention of width 5."""
    section = FocusConfig(chunk=4, local=2, prompt=2, targets=1)
    spec = spec_with(section)
    row = np.arange(1, 12, dtype=np.int32)[None]  # the anchor and ten tokens
    assert section.chunks(11) == 2 and section.num_targets == 1 and section.prompt_end == 2
    memory = jnp.asarray(row[:, 1:9].reshape(1, 2, 4))
    arrays = jnp.asarray(row[:, :1]), memory, jnp.asarray(row[:, 9:]), jnp.ones((1, 2), bool)
    chunks = focus.Chunks.of(*arrays)
    np.testing.assert_array_equal(chunks.tokens_BR, [[1, 2, 3, 4, 5, 10, 6, 7, 8, 9, 10]])
    np.testing.assert_array_equal(chunks.candidates_BC, [[11, 11]])
    layout = jax.tree.map(np.asarray, chunks.layout())
    np.testing.assert_array_equal(layout.positions[0], [[0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(layout.positions[1], [[6, 6]])
    seen = [layout.masks[0].materialize()[0], layout.masks[1].materialize()[0]]
    assert seen[1].sum(-1).tolist() == [7, 7]
    assert seen[0].sum(-1).tolist() == [1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6]
    assert not (seen[1][0] & seen[1][1])[1:].any()  # they share the anchor alone
    assert logits_of(drawn(spec), row, spec).shape == (1, 3, MODEL["vocab_size"])


@pytest.mark.parametrize("features", [{}, {"qkv_bias": True, "qk_norm": True, "post_norms": True}])
def test_without_chunks_logits_are_the_frozen_model_s(features):
    spec = spec_with(FOCUS, **features)
    params, tokens = drawn(spec, 0.2), tokens_of(length=1 + FOCUS.local)

    def plain(params, tokens_BT):
        index_BT = jnp.zeros_like(tokens_BT) + jnp.arange(tokens_BT.shape[1])
        x_BTD = params.hidden(tokens_BT, index_BT, jnp.zeros_like(tokens_BT), dataclasses.replace(spec, num_anchors=0))
        return logits(x_BTD, params.unembedding_DV(spec))

    wanted = jax.jit(plain)(params, put(tokens, BATCH))
    np.testing.assert_array_equal(logits_of(params, tokens, spec), wanted)


def test_projections_begin_as_copies():
    leaves = named_leaves(drawn(SPEC))
    candidates = [name for name in leaves if ".candidate." in name]
    assert sorted(name.rpartition(".")[2] for name in candidates) == ["k_DKH", "o_NHD", "q_DNH", "v_DKH"]
    for name in candidates:
        np.testing.assert_array_equal(leaves[name], leaves[name.replace(".candidate", "")])


def condensed_of(params, tokens: np.ndarray):
    """Keys and values of the candidates [L, B, C, K, H] by the pass of the chunks."""
    return [np.asarray(x) for x in _condensed(params, put(tokens, WHOLE_ROWS))]


@jax.jit
def _condensed(params, tokens_BT):
    chunks = focus.chunks_of_rows(tokens_BT, FOCUS)
    contexts = chunks.layout().contexts(SPEC)
    layers = params.blocks, jnp.arange(MODEL["num_layers"])
    step = lambda streams, layer: focus.condense(layer[0], streams, contexts, SPEC, layer[1])  # noqa: E731
    return jax.lax.scan(step, focus.entered(params, chunks, SPEC), layers)[1]


def test_a_candidate_depends_on_its_chunk_and_the_prompt_alone():
    params, tokens = drawn(SPEC, 0.2), tokens_of(1)
    before = condensed_of(params, tokens)
    for place in range(1, T):
        changed = tokens.copy()
        changed[0, place] = 1 + (changed[0, place] + 1) % (MODEL["vocab_size"] - 1)
        after = condensed_of(params, changed)
        differs = [(a != b).any((0, 1, 3, 4)).tolist() for a, b in zip(after, before, strict=True)]
        in_memory, in_prompt = place < 13, 13 <= place < 13 + FOCUS.prompt_end
        wanted = [in_prompt or (in_memory and (place - 1) // FOCUS.chunk == chunk) for chunk in range(3)]
        assert FOCUS.prompt_end == FOCUS.prompt == 3 and differs == [wanted, wanted], place


@pytest.mark.parametrize("targets", [1, 2, 4])
def test_what_has_a_target_sees_nothing_later(targets):
    """The first token with a target is the last of the prompt, which the memory has seen."""
    section = dataclasses.replace(FOCUS, targets=targets)
    spec = spec_with(section)
    params, tokens = drawn(spec, 0.2), tokens_of(1)
    before = np.asarray(logits_of(params, tokens, spec))[0, -targets:]
    for later in range(1, targets):
        changed = tokens.copy()
        changed[0, T - later :] = 5
        after = np.asarray(logits_of(params, changed, spec))[0, -targets:]
        np.testing.assert_array_equal(after[: targets - later], before[: targets - later])
        assert (after[targets - later :] != before[targets - later :]).any()


def test_two_rows_are_twice_one_row():
    params, tokens = drawn(SPEC, 0.2), tokens_of()
    both = logits_of(params, tokens, SPEC)
    each = [logits_of(params, tokens[row : row + 1], SPEC) for row in range(2)]
    np.testing.assert_allclose(both, np.concatenate(each), atol=1e-6)
