"""FocusLLM in training: which rows there are, what is trained and kept, and what is refused by its key."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from anchorjax import data
from anchorjax.checkpoints import conversion
from anchorjax.data.rows.row import stack
from anchorjax.data.store import tokens as store_lib
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.errors import ConfigError, WorkdirError
from anchorjax.models.linear import named_leaves
from anchorjax.sharding import shard_batch
from anchorjax.training import loop
from anchorjax.training.setup import Setup
from tests import tiny
from tests.methods import focus_runs
from tests.methods.focus_runs import config_of
from tests.training.making import assert_trees_close, make_mesh, make_state, make_steps

TOKENIZER = ByteTokenizer()
RNG = np.random.default_rng(0)
TEXTS = [{"text": bytes(RNG.integers(97, 123, size, np.uint8)).decode()} for size in (300, 40, 95, 500, 96)]
STORE = store_lib.build(TEXTS, TOKENIZER)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    focus_runs.write_base(directory)
    return directory


def packer_of(config, seed=3):
    return data.row_packer(STORE, TOKENIZER, config.data, seed, config.focus)


def test_a_row_is_a_window_of_one_document_with_targets_behind_the_prompt():
    config = config_of("base", focus__reconstruction=0.0)
    packer, lengths = packer_of(config), np.diff(STORE.offsets)
    assert packer.rows_per_epoch == (lengths // 96).sum() == 10
    found = []
    for index in range(packer.rows_per_epoch):
        row = packer.row(index)
        found.append(row.tokens_T[1:].tolist())
        assert row.tokens_T[0] == TOKENIZER.bos_id and set(row.segment_ids_T.tolist()) == {0, 1}
        np.testing.assert_array_equal(row.targets_T[-29:-1], row.tokens_T[-28:])
        assert not row.is_target_T[:-29].any() and row.is_target_T[-29:-1].all()
    wanted = [
        np.asarray(STORE.tokens)[start + 96 * i : start + 96 * (i + 1)].tolist()
        for start, length in zip(STORE.offsets[:-1], lengths, strict=True)
        for i in range(length // 96)
    ]
    assert sorted(found) == sorted(wanted)
    assert packer.targets_by_context().sum() == 290


@pytest.mark.parametrize("targets", [0, 1, 5])
def test_a_reconstruction_repeats_a_span_of_its_memory(targets):
    config = config_of("base", focus__reconstruction=1.0, focus__targets=targets)
    packer, plain = packer_of(config), packer_of(config_of("base", focus__reconstruction=0.0))
    starts = set()
    for index in range(30):
        row, source = packer.row(index), plain.row(index)
        np.testing.assert_array_equal(row.tokens_T[:61], source.tokens_T[:61])
        span = np.append(row.tokens_T[-36:], row.targets_T[-1])
        found = [s for s in range(1, 61 - 36) if (source.tokens_T[s : s + 37] == span).all()]
        assert len(found) == 1
        starts |= set(found)
        assert row.is_target_T.nonzero()[0].tolist() == list(range(97 - (targets or 29), 97))
        np.testing.assert_array_equal(row.targets_T[-36:-1], row.tokens_T[-35:])
    assert min(starts) < 6 and max(starts) > 18


def test_which_rows_are_reconstructions_is_a_function_of_seed_and_row():
    config, plain = config_of("base"), packer_of(config_of("base", focus__reconstruction=0.0))
    differs = [(packer_of(config).row(i).tokens_T != plain.row(i).tokens_T).any() for i in range(60)]
    assert differs == [(packer_of(config).row(i).tokens_T != plain.row(i).tokens_T).any() for i in range(60)]
    assert 15 < sum(differs) < 45
    (batch,) = data.eval_rows(STORE, TOKENIZER, config.data, 2, focus=config.focus)
    held_out = packer_of(config, seed=None)
    np.testing.assert_array_equal(batch.tokens_BT[0], held_out.row(0).tokens_T)
    assert bytes(batch.tokens_BT[0, 1:].tolist()).decode() == TEXTS[0]["text"][:96]


def test_documents_shorter_than_a_row_are_refused():
    store = store_lib.build([{"text": "abc"}], TOKENIZER)
    config = config_of("base")
    with pytest.raises(ConfigError, match=r"data.seq_len=97 .* the longest has 4"):
        data.row_packer(store, TOKENIZER, config.data, 1, config.focus).row(0)
    with pytest.raises(ConfigError, match=r"data.seq_len=97 .* the longest held-out one has 4"):
        data.row_packer(store, TOKENIZER, config.data, None, config.focus).row(0)


def split(params) -> tuple[dict, dict]:
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    candidates = {name: leaf for name, leaf in leaves.items() if ".candidate." in name}
    return candidates, {name: leaf for name, leaf in leaves.items() if name not in candidates}


def batches_of(config):
    packer = packer_of(config)
    return stack([packer.row(i) for i in range(config.data.batch_size)])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_candidate_projections_alone_are_trained_and_have_moments(base, accumulation):
    setup = Setup.make(config_of(base, train__grad_accum_steps=accumulation, data__batch_size=8 * accumulation))
    steps = setup.steps
    with jax.set_mesh(setup.mesh):
        state = setup.first_state()
        before, frozen = split(state.params)
        assert len(before) == 4
        for name, leaf in before.items():
            np.testing.assert_array_equal(leaf, frozen[name.replace(".candidate", "")])
        moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
        assert moments == 2 * sum(x.size for x in before.values())
        batch = shard_batch(batches_of(setup.config), setup.mesh)
        _, grads = jax.jit(steps._gradients)(state.params, batch, state.key)
        for name, leaf in named_leaves(grads).items():
            by_layer = np.abs(np.asarray(leaf)).reshape(len(leaf), -1).max(1)
            last = name.rpartition(".")[2][0] in "qo"  # what the last layer's candidate reads goes nowhere
            assert (by_layer[: -1 if last else None] > 0).all(), name
            assert not last or by_layer[-1] == 0
        state, _ = jax.jit(steps.train)(state, batch)
    after, still = split(state.params)
    for name, leaf in still.items():
        np.testing.assert_array_equal(leaf, frozen[name], err_msg=name)
    assert all((after[name] != before[name]).any() for name in before)


def test_every_mesh_and_accumulation_takes_the_same_step():
    config, results, losses = config_of("base", data__batch_size=4, model__num_layers=1), [], []
    for sizes, accumulation in (((1,), 1), ((2, 2, 1, 2), 1), ((1,), 2)):
        changed = dataclasses.replace(config, train=dataclasses.replace(config.train, grad_accum_steps=accumulation))
        steps, mesh = make_steps(changed), make_mesh(*sizes)
        with jax.set_mesh(mesh):
            state = make_state(steps)
            batch = shard_batch(batches_of(config), mesh)
            state, metrics = jax.jit(steps.train)(state, batch)
            results.append(jax.tree.map(np.asarray, split(state.params)[0]))
            losses.append([float(metrics["loss"]), float(jax.jit(steps.nats)(state.params, batch).sum())])
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)
    for other in results[1:]:
        assert_trees_close(results[0], other, atol=3e-5)


def test_the_loss_is_that_of_the_targets(base):
    setup = Setup.make(config_of(base, data__batch_size=8))
    with jax.set_mesh(setup.mesh):
        state = setup.first_state()
        batch = batches_of(setup.config)
        on_mesh = shard_batch(batch, setup.mesh)
        nats = np.asarray(jax.jit(setup.steps.nats)(state.params, on_mesh))
        _, metrics = jax.jit(setup.steps.train)(state, on_mesh)
    assert nats.shape == batch.targets_BT.shape
    assert float(metrics["targets"]) == batch.is_target_BT.sum() == 8 * 29
    np.testing.assert_allclose(float(metrics["loss"]), nats[batch.is_target_BT].mean(), rtol=1e-5)


WINDOWS = {"data__window_schedule": "linear", "data__window_multiple": 1, "data__window_steps": 1}
REFUSED = {
    "data.seq_len=96": {"data__seq_len": 96},
    "focus.reconstruction=0.5": {"data__seq_len": 57},
    "focus.local=0": {"focus__local": 0},
    "focus.prompt=37": {"focus__prompt": 37},
    "focus.targets=30": {"focus__targets": 30},
    "focus.prompt=8": {"focus__chunk": 0, "focus__local": 0},
    "lora.rank=4": {"lora__rank": 4},
    "data.mask='full'": {"data__mask": "full"},
    "data.positions='pose'": {"data__positions": "pose", "data__max_position": 200},
    "data.packing='best_fit'": {"data__packing": "best_fit"},
    "data.interleave=2": {"data__interleave": 2},
    "data.tags=True": {"data__tags": True},
    "data.boundary_targets=True": {"data__boundary_targets": True},
    "data.messages_key='messages'": {"data__messages_key": "messages"},
    "data.window_schedule='linear'": {
        "data__window_schedule": "linear",
        "data__window_multiple": 1,
        "data__window_steps": 1,
    },
    "train.objective='exact'": {"train__objective": "exact"},
    "model.dropout=0.1": {"model__dropout": 0.1},
    "mesh.context=2": {"mesh__context": 2},
    "mesh.context_strategy='ring'": {"mesh__context_strategy": "ring"},
    "attention.logit_scale='entropy_abf'": {"attention__logit_scale": "entropy_abf", "attention__logit_scale_from": 0},
    "focus.chunk=20": {"init_from": ""},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_does_not_go_together_is_refused_by_its_key(named):
    with pytest.raises(ConfigError) as error:
        config_of(
            **({"base": "somewhere"} if "init_from" not in REFUSED[named] else {"base": ""}),
            **{key: value for key, value in REFUSED[named].items() if key != "init_from"},
        )
    key, _, value = named.partition("=")
    assert str(error.value).startswith(f"config.{key}") and value in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}, "sliding window"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "depends on the length"),
    ],
)
def test_checkpoints_that_it_cannot_stand_beside_are_refused(base, tmp_path, fields, why):
    made = json.loads((base / "config.json").read_text()) | fields
    made = {name: value for name, value in made.items() if name not in ("rope_parameters", "rope_interleaved")}
    (tmp_path / "config.json").write_text(json.dumps(made))
    opened = {"model__family": "", "rope__theta": 0.0, "rope__scaling": "auto"}
    with pytest.raises(ConfigError, match=rf"focus.chunk=20 .*{why}"):
        Setup.make(config_of(tmp_path, **opened))


def test_a_run_resumes_bit_for_bit(base, data_dir, tmp_path):
    changes = {"data__data_dir": str(data_dir), "optimizer__warmup_steps": 1, "optimizer__schedule": "constant"}
    config = config_of(base, **changes, train__steps=8, data__batch_size=8)
    assert loop.run(config, tmp_path / "whole") == 0
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4))
    assert loop.run(half, tmp_path / "halves") == 0
    assert loop.run(config, tmp_path / "halves") == 0
    whole, halves = (_losses(tmp_path / name) for name in ("whole", "halves"))
    assert whole == halves and list(whole) == list(range(1, 9))
    with pytest.raises(WorkdirError, match=r"focus\.chunk"):
        conversion.to_hf(tmp_path / "whole", tmp_path / "out")
    with pytest.raises(ConfigError, match="init_from"):
        Setup.make(tiny.config(init_from=str(tmp_path / "whole")))


def _losses(workdir) -> dict[int, str]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: float(line["loss"]).hex() for line in lines if line["kind"] == "train"}


def test_the_loss_of_reconstruction_goes_down(base):
    changes = {"focus__reconstruction": 1.0, "optimizer__learning_rate": 1e-2, "optimizer__schedule": "constant"}
    setup = Setup.make(config_of(base, data__batch_size=8, **changes))
    packer, losses = packer_of(setup.config), []
    with jax.set_mesh(setup.mesh):
        state, train = setup.first_state(), jax.jit(setup.steps.train, donate_argnums=0)
        for step in range(40):
            batch = stack([packer.row(8 * step + row) for row in range(8)])
            state, metrics = train(state, shard_batch(batch, setup.mesh))
            losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1, losses


def test_held_out_documents_shorter_than_a_row_are_refused_before_the_first_step(base, monkeypatch, tmp_path):
    short = store_lib.build([{"text": "abc"}], TOKENIZER)
    monkeypatch.setattr(data, "load_store", lambda _, split, __: STORE if split == "train" else short)
    with pytest.raises(ConfigError, match="the longest held-out one has 4"):
        loop.run(config_of(base, data__batch_size=8), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
