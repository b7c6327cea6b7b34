"""benchmarks/attention/cpu_attention.py runs and keeps its contract; what it measures is not a test's business."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from benchmarks.attention.cpu_attention import PAIRS
from tests.training.jobs import ROOT


@pytest.mark.slow
def test_prints_its_figures_and_one_json_line():
    command = [sys.executable, "-m", "benchmarks.attention.cpu_attention", "--lengths=512", "--repeats=1", "--json"]
    env = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])["512"]
    torch = importlib.util.find_spec("torch") is not None
    for one, other in PAIRS:
        assert (f"{one}_over_{other}" in row) == (torch or "torch" not in one + other)
    # One round: its ratios are those of the medians.
    assert row["dense_over_full"] == row["dense_forward_backward_s"] / row["full_forward_backward_s"]
    assert row["dense_over_anchor_forward"] == row["dense_forward_s"] / row["anchor_forward_s"]
    assert row["plan_s"] > 0 and 0 < row["live_tile_ratio"] <= 1
