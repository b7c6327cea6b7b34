"""Scalable softmax: s log n by hand and in transformers, what s is and how it is trained, saved and read."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import torch

from anchorjax.checkpoints.pretrained import Pretrained
from anchorjax.cli import convert
from anchorjax.config import load_config
from anchorjax.errors import ConfigError, UsageError, WorkdirError
from anchorjax.evaluation.tasks import held_out
from anchorjax.experiments.attention_weights.capture import Row, capture
from anchorjax.experiments.rope_precision import command as rope_precision
from anchorjax.inference import language_model
from anchorjax.inference.scoring import Scorer
from anchorjax.models.decoder import Decoder
from anchorjax.models.linear import named_leaves
from anchorjax.sharding import shard_batch
from anchorjax.training import loop
from anchorjax.training.setup import Setup
from anchorjax.types import CONTEXT_STRATEGIES
from tests import tiny as settings
from tests.checkpoints.huggingface import tiny
from tests.methods.making import decoded, factors_of, make, put, run, scaled_spec
from tests.training import test_context_strategies as strategies
from tests.training.making import make_batch, make_mesh, make_state, make_steps

T, LEAF = 48, "blocks.attention.logit_scale_N"
NAME = "scalable_softmax"
ON = {"attention__logit_scale": NAME, "attention__logit_scale_by": "visible", "attention__logit_scale_from": 0}
STEPS = ON | {"attention__logit_scale_from": 1, "attention__logit_scale_length": 16}
RNG = np.random.default_rng(0)


@pytest.fixture
def one_device():
    with jax.set_mesh(make_mesh()):
        yield


def with_scales(params: Decoder, scale_LN: np.ndarray) -> Decoder:
    """The decoder with these s."""
    leaves = named_leaves(params)
    leaves[LEAF] = jax.device_put(scale_LN.astype(np.float32), leaves[LEAF].sharding)
    return jax.tree.unflatten(jax.tree.structure(params), leaves.values())


def test_at_first_logits_are_the_checkpoint_s_where_c_keys_are_seen(one_device):
    spec = scaled_spec(NAME, T, length=20, compute_dtype="bfloat16", param_dtype="bfloat16")
    leaves, plain = (named_leaves(make(x)) for x in (spec, scaled_spec("none", T, 0)))
    assert leaves.keys() - plain.keys() == {LEAF} and not plain.keys() - leaves.keys()
    scale_LN = np.asarray(leaves[LEAF])
    assert scale_LN.shape == (3, 4) and scale_LN.dtype == np.float32
    log_T = factors_of(range(T), [0] * T, spec)
    np.testing.assert_allclose(log_T, np.log(np.arange(1, T + 1)), rtol=2e-7)
    np.testing.assert_allclose(scale_LN * log_T[19], 1, rtol=2e-7)


@pytest.mark.parametrize(("name", "first"), [("llama untied", 0), ("gemma2", 1)])
def test_logits_are_those_of_transformers_with_scaled_queries(name, first, tmp_path, one_device):
    """s differs from head to head. Gemma 2 has a softcap behind the scale."""
    pair = tiny.pair(name, tmp_path)
    values = {"logit_scale": NAME, "logit_scale_length": 9, "logit_scale_from": first}
    spec = dataclasses.replace(pair.spec, attention=dataclasses.replace(pair.spec.attention, **values))
    scale_LN = RNG.uniform(0.2, 0.8, (2, 4))
    params = jax.tree.unflatten(
        jax.tree.structure(make(spec)), (named_leaves(make(spec)) | named_leaves(pair.ours)).values()
    )
    tokens = RNG.integers(0, tiny.VOCABULARY, (2, tiny.T))
    log_T = torch.log(torch.arange(1, tiny.T + 1))

    def scaled_queries(scale_N):
        scale_N = torch.tensor(scale_N, dtype=torch.float32)
        return lambda _, __, q: (q.unflatten(-1, (4, -1)) * scale_N[:, None] * log_T[:, None, None]).flatten(2)

    for layer, scale_N in list(zip(pair.theirs.model.layers, scale_LN, strict=True))[first:]:
        layer.self_attn.q_proj.register_forward_hook(scaled_queries(scale_N))
    wanted = pair.theirs(torch.tensor(tokens)).logits.detach().numpy()
    found = run(with_scales(params, scale_LN), *put(tokens, [range(tiny.T)] * 2, np.zeros((2, tiny.T))), spec)
    assert np.abs(np.asarray(found) - wanted).max() < 2e-4 * wanted.std()


@pytest.fixture(scope="module")
def steps_of_one_device(tiny_config):
    return strategies.steps_on((1, 1, 1, 1), "all_gather", tiny_config, STEPS)


@pytest.mark.parametrize("strategy", CONTEXT_STRATEGIES)
def test_meshes_and_strategies_take_the_steps_of_one_device(strategy, tiny_config, steps_of_one_device):
    """Micro-batches of reordered tokens, of which devices hold parts; layers with and without a window; softcaps."""
    found, expected = strategies.steps_on((1, 2, 2, 2), strategy, tiny_config, STEPS), steps_of_one_device
    strategies.assert_the_same_steps(found, expected)


@pytest.mark.parametrize("by", ["position", "visible"])
def test_decoding_gives_what_whole_rows_give(by, one_device):
    """With kinds of layers, a layer that is exempt, and padding in front of one of the rows."""
    kinds = {"sliding_window": 6, "global_every": 2, "compute_dtype": "float32"}
    spec = scaled_spec(NAME, T, length=4, first=1, by=by, **kinds)
    tokens, start_B = RNG.integers(0, 64, (2, T)), np.array([0, 5])
    params = with_scales(make(spec), RNG.uniform(0.2, 0.8, (3, 4)))
    shifted = np.stack([np.roll(row, -start) for row, start in zip(tokens, start_B, strict=True)])
    whole = np.asarray(run(params, *put(shifted, [range(T)] * 2, np.zeros((2, T))), spec))
    found = decoded(params, tokens, start_B, chunk=16, spec=spec)
    for row, start in enumerate(start_B):
        np.testing.assert_allclose(found[row], whole[row, 15 - start : T - start], atol=2e-5)


@pytest.mark.parametrize("lora", [{}, {"lora__rank": 4}], ids=["all", "lora"])
def test_s_is_trained_without_decay_beside_all_weights_or_adapters(lora, one_device):
    """s is what its moments alone make of it, however large the decay; a layer that is exempt keeps its s."""
    found = {}
    for decay in (0.0, 1.0):
        config = settings.config(**STEPS, **lora)
        config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, weight_decay=decay))
        steps = make_steps(config)
        state = make_state(steps)
        first_LN = np.asarray(named_leaves(state.params)[LEAF])
        state, _ = jax.jit(steps.train)(state, shard_batch(make_batch(2, 64), make_mesh()))
        found[decay] = np.asarray(named_leaves(state.params)[LEAF])
        assert np.all(found[decay][1] != first_LN[1])
        np.testing.assert_array_equal(found[decay][0], first_LN[0])
    np.testing.assert_array_equal(found[0.0], found[1.0])


def test_a_run_and_what_starts_from_it_keep_s(tmp_path, data_dir, capsys):
    """Trained, stopped, resumed, scored, taken up by another run, and refused where it would be lost."""
    workdir = tmp_path / "run"
    values = ON | {"data__data_dir": data_dir, "data__batch_size": 8, "train__steps": 4, "optimizer__warmup_steps": 0}
    config = settings.config(**values)
    loop.run(config, workdir)
    assert load_config(workdir)["attention"]["logit_scale_length"] == 64  # the rows, without a checkpoint
    assert loop.run(config, workdir) == loop.DONE  # its 0 is the same 64
    with pytest.raises(WorkdirError, match=r"attention.logit_scale_by: 'visible' -> 'position'"):
        loop.run(settings.config(**values | {"attention__logit_scale_by": "position"}), workdir)

    description = language_model.describe(workdir=workdir)
    attention = description.attention
    assert (attention.logit_scale, attention.logit_scale_by, attention.logit_scale_length) == (NAME, "visible", 64)
    assert held_out.load(workdir).steps.spec.attention.logit_scale_length == 64
    model = language_model.load(description)
    scale_LN = np.asarray(named_leaves(model.params)[LEAF])
    assert np.all(np.abs(scale_LN - 1 / math.log(64)) > 1e-5)
    row = [256, *range(40)]
    captured = capture(model, Row(np.array(row, np.int32), np.zeros(len(row), np.int32), 1))
    assert len(captured) == 2  # the laboratory takes such models
    one = dataclasses.replace(description, attention=type(attention)())
    without = dataclasses.replace(model, description=one)
    assert not np.allclose(Scorer(model).score([row])[0].nats_t, Scorer(without).score([row])[0].nats_t, atol=1e-3)

    start = values | {"init_from": str(workdir), "data__tokenizer": "auto"}
    setup = Setup.make(settings.config(**start))
    assert setup.config.attention.logit_scale_length == 64
    with jax.set_mesh(setup.mesh):
        np.testing.assert_array_equal(named_leaves(setup.first_state().params)[LEAF], scale_LN)
    for changes, key in (
        ({"attention__logit_scale": "none", "attention__logit_scale_by": "position"}, "attention.logit_scale"),
        ({"attention__logit_scale_length": 32}, "attention.logit_scale_length"),
    ):
        changes |= {} if "attention__logit_scale_length" in changes else {"attention__logit_scale_from": 2}
        with pytest.raises(ConfigError) as refused:
            Setup.make(settings.config(**start | changes))
        assert refused.value.key == key and "the checkpoint in init_from was trained with" in str(refused.value)

    capsys.readouterr()
    assert convert.main(["to-hf", str(workdir), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "attention.logit_scale=scalable_softmax" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert rope_precision.main([f"--workdir={workdir}", "--lengths=8", "--tokens=8"]) == 2
    assert "attention.logit_scale=scalable_softmax" in capsys.readouterr().err


def test_a_plain_checkpoint_gets_a_fresh_s(tmp_path, data_dir):
    """From Hugging Face and from a run alike, with adapters and without."""
    plain = settings.config(data__data_dir=data_dir, data__batch_size=8, train__steps=1)
    loop.run(plain, tmp_path / "plain")
    assert convert.main(["to-hf", str(tmp_path / "plain"), str(tmp_path / "hf")]) == 0
    for name in ("plain", "hf"):
        for lora in ({}, {"lora__rank": 2}):
            start = ON | {"init_from": str(tmp_path / name), "data__tokenizer": "bytes", "data__batch_size": 8} | lora
            setup = Setup.make(settings.config(**start))
            with jax.set_mesh(setup.mesh):
                leaves = named_leaves(setup.first_state().params)
            np.testing.assert_allclose(leaves[LEAF], 1 / math.log(64), rtol=1e-6)
            assert float(np.abs(np.asarray(leaves["embed_VD"], np.float32)).max()) > 0
    with pytest.raises(UsageError):
        language_model.describe(workdir=tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["max_position_embeddings"] == 64
    assert Pretrained.open(tmp_path / "plain").attention["logit_scale"] == "none"
