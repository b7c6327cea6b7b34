"""Both sides of the comparison do the same work: from real weights, their first losses agree."""

import json
import os
import subprocess
import sys

import pytest

from tests import smollm2
from tests.training.jobs import ROOT


@pytest.mark.slow
def test_first_losses_agree_and_the_ratios_are_those_of_the_seconds():
    command = [sys.executable, "-m", "benchmarks.training.vs_transformers", "--lengths=96", "--repeats=1", "--json"]
    command += [f"--weights={smollm2.require('bfloat16')}"]
    env = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads(done.stdout.splitlines()[-1])["96"]
    assert abs(row["full_first_loss"] / row["transformers_first_loss"] - 1) < 1e-5
    assert abs(row["anchor_first_loss"] / row["transformers_first_loss"] - 1) < 0.2  # one document is not the same text
    for mask in ("full", "anchor"):
        assert row[f"speedup_{mask}"] == row["transformers_s"] / row[f"{mask}_s"]
