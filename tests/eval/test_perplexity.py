"""eval/perplexity.py on a finished run: the run's own held-out loss, again, from its checkpoint."""

import json
import math
import shutil
import subprocess
import sys

import pytest

from tests.training.jobs import ROOT


@pytest.fixture(scope="module")
def finished(jobs):
    workdir = jobs.directory / "finished"
    jobs.run(workdir)
    return workdir


def perplexity(jobs, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "eval/perplexity.py"), *arguments]
    return subprocess.run(command, cwd=jobs.directory, env=jobs.env, capture_output=True, text=True, timeout=300)


def test_equals_the_run_s_own_held_out_loss(jobs, finished):
    done = perplexity(jobs, f"--workdir={finished}", "--rows=2")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "WARNING" not in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    summary = json.loads((finished / "summary.json").read_text())
    assert result["loss"] == summary["validation_loss"]
    assert result["bits_per_byte"] == summary["bits_per_byte"]
    assert result["step"] == summary["step"]
    assert math.isclose(result["perplexity"], math.exp(result["loss"]))
    assert list(result["by_position"]) == ["0-64"] and set(result["by_context"]) == {"0-64"}
    assert math.isclose(result["by_position"]["0-64"], result["loss"], rel_tol=1e-6)


def test_leaves_the_run_as_it_was(jobs, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    perplexity(jobs, f"--workdir={finished}", "--rows=2")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "attention",
    [
        {"implementation": "pallas_gpu", "q_tile": 32, "kv_tile": 32},
        {"implementation": "pallas_tpu", "q_tile": 128, "kv_tile": 128},
        {"implementation": "auto", "q_tile": 4, "kv_tile": 0},  # what this machine's own implementation does not take
    ],
    ids=lambda attention: attention["implementation"],
)
def test_a_run_of_other_hardware_is_evaluated_here(jobs, finished, tmp_path, attention):
    workdir = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["attention"] = attention
    (workdir / "config.json").write_text(json.dumps(config))
    done = perplexity(jobs, f"--workdir={workdir}", "--rows=2")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("perplexity.py: ")]
    assert "the run's attention does not fit" in line and "taking auto" in line
    summary = json.loads((finished / "summary.json").read_text())
    assert math.isclose(json.loads(done.stdout.splitlines()[-1])["loss"], summary["validation_loss"], rel_tol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--workdir=nowhere"], 2, "there is no run in nowhere"),
        (["--workdir=nowhere", "--rows=-1"], 2, "--rows=-1 is not allowed"),
    ],
)
def test_faults_are_one_line(jobs, arguments, code, message):
    done = perplexity(jobs, *arguments)
    assert done.returncode == code
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
