"""benchmarks/training/step_time.py runs and keeps its contract; what it measures is not a test's business."""

import json
import os
import subprocess
import sys

import pytest

from tests import xla
from tests.training.jobs import ROOT


@pytest.mark.slow
def test_prints_a_table_and_one_json_line():
    command = [sys.executable, "-m", "benchmarks.training.step_time", "--lengths=512,1024", "--repeats=1", "--json"]
    env = os.environ | {"XLA_FLAGS": xla.flags()}  # one device: the batch is one row
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"512", "1024"}
    for row in result.values():
        assert row["ratio"] == row["anchor_s"] / row["full_s"]
        assert 0 < row["live_pairs"] <= 1
