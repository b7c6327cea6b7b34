"""The recipe of the real model, shortened: it learns from the shipped books, and is what transformers then loads."""

import math
import os
import subprocess
import sys

import pytest
import torch
import transformers

from anchorjax import data
from anchorjax.config import resolve
from configs import smollm2_135m_anchor
from tests import smollm2
from tests.training.jobs import ROOT, lines

SHORTENED = {
    "data.seq_len": 512,
    "data.batch_size": 2,
    "train.steps": 5,
    "train.log_every": 1,
    "train.tensorboard": False,
    "optimizer.learning_rate": 1e-4,
    "optimizer.warmup_steps": 1,
    "eval.every": 5,
    "eval.rows": 4,
    "eval.final_rows": 4,
    "checkpoint.every": 5,
}


def run(*arguments) -> None:
    """On one device with all of XLA's optimizations, as users have it."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, timeout=1800)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def row_loss(directory, batch) -> float:
    """The loss of transformers in nats per target, on a row of one document behind its anchor."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokens, targets = torch.tensor(batch.tokens_BT).long(), torch.tensor(batch.targets_BT).long()
    with torch.inference_mode():
        nats = torch.nn.functional.cross_entropy(model(tokens).logits[0], targets[0], reduction="none")
    weights = torch.tensor(batch.is_target_BT[0])
    return float((nats * weights).sum() / weights.sum())


@pytest.mark.slow
def test_held_out_loss_of_the_real_model_goes_down(data_dir, tmp_path):
    directory, workdir = smollm2.require("bfloat16"), tmp_path / "run"
    overrides = SHORTENED | {"init_from": directory, "data.data_dir": data_dir}
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    run("train.py", "--config=configs/smollm2_135m_anchor.py", f"--workdir={workdir}", *flags)
    run("-m", "anchorjax", "convert", "to-hf", workdir, tmp_path / "trained")

    config = smollm2_135m_anchor.get_config()
    config.data.update({"seq_len": 512, "data_dir": data_dir, "tokenizer": str(directory)})
    section = resolve(config.to_dict()).data
    tokenizer = data.load_tokenizer(section)
    batch = next(data.eval_rows(data.load_store(section, "validation", tokenizer), tokenizer, section, 1))
    assert batch.segment_ids_BT.max() == 1  # one document: the anchor mask is the causal one
    before, after = row_loss(directory, batch), row_loss(tmp_path / "trained", batch)
    assert before - after > 0.05, (before, after)

    losses = [line["loss"] for line in lines(workdir, "train")]
    assert len(losses) == 5 and all(map(math.isfinite, losses))
    assert losses[0] < 4  # it began with the weights: a random model is at log(49152) = 10.8
