"""benchmarks/data/data.py runs and keeps its contract; what it measures is not a test's business."""

import json
import subprocess
import sys

from tests.training.jobs import ROOT


def test_prints_its_figures_and_one_json_line():
    command = [
        sys.executable,
        "-m",
        "benchmarks.data.data",
        "--tokens=2000000",
        "--seconds=0.2",
        "--lengths=4096",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    rows = result["rows"]["4096"]
    packings = {"concat_split", "first_fit", "best_fit"}
    assert set(rows) == packings | {f"grain_{packing}" for packing in packings} | {"tags", "interleave"}
    assert result["tokens_per_s"] == {"4096": rows["concat_split"]["tokens_per_s"]}
    assert all(0 < row["fill"] <= 1 and row["tokens_per_s"] > 0 for row in rows.values())
    assert result["memory"]["tokens"] > 1_900_000
