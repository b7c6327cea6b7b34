"""benchmarks/training/longce.py counts the paper's windows; what it measures is not a test's business."""

import json
import os
import subprocess
import sys

import pytest

from anchorjax.models.flops import forward_flops, train_flops
from benchmarks.training import longce
from tests import xla
from tests.training.jobs import ROOT


def test_counts_the_windows_of_the_paper():
    found = longce.count(4096, 1024)
    assert (found["windows"], found["tokens"]) == (28, 143360)
    # A forward pass is a third of a step, and windows have 0.684 of the row's pairs.
    assert 4.375 / 3 > found["flops"] > 0.684 / 3


def test_a_forward_pass_of_all_tokens_is_a_third_of_a_step():
    model = longce.LLAMA_2_7B
    assert 3 * forward_flops(model, 100, 5050, 100) == pytest.approx(train_flops(model, 100, 5050), rel=1e-12)
    words = 2 * model.d_model * model.vocab_size
    assert forward_flops(model, 100, 5050, 100) - forward_flops(model, 100, 5050, 60) == pytest.approx(40 * words)


@pytest.mark.slow
def test_times_every_size_against_the_mean():
    command = [sys.executable, "-m", "benchmarks.training.longce", "--length=512", "--repeats=1", "--json"]
    env = os.environ | {"XLA_FLAGS": xla.flags()}  # one device: the batch is one row
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])["timed"]
    assert set(result) == {"mean", "64,16", "16,16", "64,64", "64,8"} and result["mean"]["added"] == 0
    assert all(found["step_s"] > 0 for found in result.values())
