"""Training on conversations: the loss is the mean over trained targets, and runs go on and agree as with texts."""

import dataclasses
import json
from unittest import mock

import jax
import numpy as np
import pytest

from anchorjax import data
from anchorjax.config import load_config, resolve
from anchorjax.data.rows.row import stack
from anchorjax.data.store.index import Index
from anchorjax.data.store.tokens import TokenStore
from anchorjax.errors import ConfigError
from anchorjax.sharding import shard_batch
from anchorjax.training import loop
from eval import perplexity
from tests import tiny
from tests.data import preparing
from tests.data.chat_templates import PLAIN, SPECIALS
from tests.data.test_conversations import messages
from tests.evaluation import bpe
from tests.training.jobs import hex_held_out, hex_losses, lines, saved_steps
from tests.training.making import make_mesh, make_state, make_steps

STEPS = 6


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The arguments of a run on 120 conversations, in rows of 64 tokens."""
    folder = tmp_path_factory.mktemp("conversations")
    directory = str(bpe.write(folder, PLAIN["llama_3"], SPECIALS))
    rows = [{"messages": messages(i, 1 + i % 3), "source": f"s{i % 2}"} for i in range(120)]
    source = f"jsonl:{preparing.write_jsonl(folder / 'x.jsonl', rows)}"
    preparing.prepare(folder, source, tokenizer=directory, messages_key="messages", held_out_share=0.2)
    chosen = {"data.store": folder / "store", "data.tokenizer": directory, "data.messages_key": "messages"}
    chosen |= {"model.vocab_size": 3072, "data.batch_size": 4, "train.grad_accum_steps": 2}
    # Without dropout, which is drawn by a row's place in its batch: devices that hold other rows draw otherwise.
    chosen |= {"train.steps": STEPS, "checkpoint.every": 2, "eval.every": 3, "model.dropout": 0.0}
    return [f"--config.{name}={value}" for name, value in chosen.items()]


@pytest.fixture(scope="module")
def unbroken(jobs, flags):
    workdir = jobs.directory / "conversations"
    jobs.run(workdir, *flags)
    return workdir


def test_targets_are_the_assistants(unbroken):
    config = resolve(load_config(unbroken))
    tokenizer = data.load_tokenizer(config.data)
    train, held_out = (TokenStore.open(f"{config.data.store}/{split}") for split in ("train", "validation"))
    packer = data.row_packer(train, tokenizer, config.data, config.seed)
    B, logged = config.data.batch_size, [line["targets"] for line in lines(unbroken, "train")]
    rows = [packer.row(index) for index in range(STEPS * B)]
    by_step = np.array([row.is_target_T.sum() for row in rows]).reshape(STEPS, B).sum(1)
    assert logged == by_step.tolist()
    said = tokenizer.decode(np.concatenate([row.targets_T[row.is_target_T] for row in rows]))
    assert "Answer" in said and "Question" not in said and "system" not in said
    summary = json.loads((unbroken / "summary.json").read_text())
    batches = list(data.eval_rows(held_out, tokenizer, config.data, config.eval.final_rows))
    assert summary["validation_targets"] == sum(int(batch.is_target_BT.sum()) for batch in batches)
    assert summary["validation_targets"] < 0.6 * sum(int((batch.segment_ids_BT > 0).sum()) for batch in batches)


def test_a_killed_run_resumes_bit_for_bit(jobs, flags, unbroken, tmp_path):
    jobs.run(tmp_path, *flags, signal_at=("SIGKILL", "train", 5), expect=-9)
    assert 0 < max(saved_steps(tmp_path)) < 5
    assert "resuming after step" in jobs.run(tmp_path, *flags)
    assert hex_losses(tmp_path) == hex_losses(unbroken) and hex_held_out(tmp_path) == hex_held_out(unbroken)


def test_two_processes_train_as_one_does(jobs, flags, unbroken, tmp_path):
    jobs.run_processes(tmp_path, *flags, "--config.mesh.fsdp=2", count=2, devices=2)
    for kind in ("train", "eval"):
        found, expected = ([(x["loss"], x["targets"]) for x in lines(run, kind)] for run in (tmp_path, unbroken))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_held_out_perplexity_is_the_runs_own(unbroken, tmp_path, capsys):
    assert perplexity.main([f"--workdir={unbroken}", "--rows=2", f"--out={tmp_path}"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    summary = json.loads((unbroken / "summary.json").read_text())
    assert result["targets"] == summary["validation_targets"]
    assert result["loss"] == pytest.approx(summary["validation_loss"], rel=1e-6)  # eight devices, and not one


def test_a_micro_batch_without_targets_weighs_nothing():
    """Rows of 40 trained targets, of 3 and of none: one step of any accumulation, whose loss is the mean of targets."""
    store = TokenStore(np.arange(1, 193) % 250, np.array([0, 64, 128, 192]), "test")
    trained = np.zeros(192, bool)
    trained[20:60] = trained[130:133] = True
    store, results = dataclasses.replace(store, trained=trained), {}
    for accumulation in (1, 2, 4):
        config = tiny.config(data__batch_size=4, data__seq_len=65, train__grad_accum_steps=accumulation)
        packer = data.row_packer(store, preparing.BYTES, config.data, None)
        batch = stack([packer.row(row) for row in (0, 1, 2, 1)])
        assert batch.is_target_BT.sum(1).tolist() == [40, 0, 3, 0]
        steps, mesh = make_steps(config), make_mesh(1)
        with jax.set_mesh(mesh):
            state, on_device = make_state(steps), shard_batch(batch, mesh)
            nats_BT = np.asarray(jax.jit(steps.nats)(state.params, on_device), np.float64)
            _, metrics = jax.jit(steps.train)(state, on_device)
        assert float(metrics["targets"]) == 43
        assert float(metrics["loss"]) == pytest.approx(nats_BT[batch.is_target_BT].mean(), rel=1e-6)
        results[accumulation] = float(metrics["grad_norm"])
    assert results[2] == pytest.approx(results[1], rel=1e-5) and results[4] == pytest.approx(results[1], rel=1e-5)


def test_a_model_without_the_special_tokens_is_refused(unbroken, monkeypatch):
    config = resolve(load_config(unbroken))
    setup = mock.Mock(config=config, store_tokenizer=data.load_tokenizer(config.data))
    loop._load_stores(setup)
    monkeypatch.setattr(Index, "read", lambda path, read=Index.read: dataclasses.replace(read(path), vocab_size=4000))
    with pytest.raises(ConfigError, match=r"model.vocab_size=3072 .* has tokens up to 3999"):
        loop._load_stores(setup)
