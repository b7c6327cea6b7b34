"""`anchorjax plan`: what it prints and returns, with real compilers on small models."""

import json
import os
import subprocess
import sys

import pytest

from anchorjax import cli, targets
from anchorjax.cli import plan
from anchorjax.plan import search
from tests.compilers import require_compiler
from tests.training.jobs import ROOT

SMALL = "--config=quickstart", "--config.model.num_layers=2", "--config.model.compute_dtype=bfloat16"
# 64 layers keep more for the backward pass than a GPU has, and with model.remat=full less. They compile as fast as two.
TOO_LARGE = (
    *("--config=quickstart", "--config.model.num_layers=64", "--config.model.d_model=512", "--config.model.d_ff=2048"),
    *("--config.model.num_heads=8", "--config.model.num_kv_heads=8", "--config.model.head_dim=64"),
    *("--config.data.seq_len=65536", "--config.data.batch_size=8", "--config.model.remat=attention"),
)


def run(*argv: str) -> subprocess.CompletedProcess:
    env = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-m", "anchorjax", "plan", *argv]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("target", ["h100:1", pytest.param("v5e:2x2", marks=pytest.mark.slow)])
def test_a_small_model_fits(target, tmp_path):
    require_compiler(target.partition(":")[0])
    file = tmp_path / "plan.png"
    done = run(*SMALL, f"--target={target}", "--config.data.batch_size=4", f"--picture={file}")
    assert done.returncode == 0, done.stderr
    first, verdict, *_ = done.stdout.splitlines()
    assert first.startswith(f"{target}: ") and verdict == "It fits."
    assert "Memory of one device (compiled)" in done.stdout and "  parameters " in done.stdout
    assert "A step (counted)" in done.stdout and "Documents (counted in " in done.stdout
    assert "Time of a step (modelled" in done.stdout and "  Assumptions:" in done.stdout
    assert "The run (modelled)" in done.stdout and "price" not in done.stdout
    assert "  16,384 tokens: 4 rows of 4,096" in done.stdout
    # Progress, and none of what the compilers print as they start.
    lines = done.stderr.splitlines()
    doing = f"compiling for {target}: ", "packing rows: ", f"drawing {file}: "
    assert lines and all(line.startswith(doing) for line in lines), lines
    assert file.read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_is_compiled_with_what_helps():
    require_compiler("h100")
    done = run(*TOO_LARGE, "--target=h100:1", "--json", "--price=2.5")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["fits"], found["fits_as_given"]) == (True, False)
    assert found["changes"] == {"model.remat": "full"}
    assert found["hbm_bytes"] == sum(found["hbm_by_kind"].values()) < found["capacity"]
    assert found["step_seconds_low"] <= found["step_seconds"] <= found["step_seconds_high"]
    assert found["step_seconds"] == pytest.approx(sum(part["seconds"] for part in found["step_parts"]))
    hours = found["step_seconds"] * found["run"]["steps"] / 3600
    assert found["run"]["price"] == pytest.approx(2.5 * hours)  # one chip
    (attempt,) = found["attempts"]
    assert attempt["remedy"] == "remat" and attempt["fits"] and attempt["hbm_bytes"] == found["hbm_bytes"]
    assert "--config.model.remat=full" in found["launch"].split()
    assert found["tokens_per_step"] == 8 * 65536 and found["devices"] == found["chips"] == 1


def test_the_run_s_own_arguments_are_passed_on():
    given = ["--config=x", "--config.seed=1", "--noconfig.data.tags", "--target=h100", "--json", "--nojson"]
    assert [argument for argument in given if plan.is_of_training(argument)] == given[:3]


def test_an_unknown_target_is_answered_with_all_that_there_are(capsys, monkeypatch):
    monkeypatch.setattr(targets, "prepare", lambda: None)
    assert cli.main(["plan", "--config=quickstart", "--target=v9:2x2"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("anchorjax plan: --target=v9:2x2 is not allowed: target 'v9:2x2' is unknown\n")
    for name in (*targets.TPUS, *targets.GPUS):
        (line,) = [line for line in err.splitlines() if line.split()[0] == name]
        assert "GB" in line and "TFLOP/s" in line
    assert cli.main(["plan", "--config=quickstart", "--target=cpu:8"]) == 2
    assert "it must be an accelerator" in capsys.readouterr().err


def test_a_search_compiles_no_more_than_it_ranks():
    assert plan.MOST == search.CONTENDERS


def test_a_missing_compiler_is_named_with_its_package(capsys, monkeypatch):
    monkeypatch.setattr(targets, "prepare", lambda: None)
    monkeypatch.setattr(targets, "has_compiler", lambda target: False)
    assert cli.main(["plan", "--config=quickstart", "--target=h100:1"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("anchorjax plan: the compiler for h100 is missing: python -m pip install ")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--config=quickstart"], "--target is missing. Usage: anchorjax plan --config="),
        (["--config=quickstart", "--target=h100:1", "--price=-1"], "--price=-1 is not allowed: it must be a number"),
        (["--config=quickstart", "--target=h100:1", "--search=13"], "--search=13 is not allowed: it must be "),
        (["--config=quickstart", "--target=h100:1", "--lengths=none.json"], "--lengths=none.json is not allowed: "),
        (["--config=quickstart", "--target=h100:1", "--picture=plan.jpg"], "--picture=plan.jpg is not allowed: "),
        (["--target=h100:1"], "--config is missing"),
        (["--config=llama3_8b_128k_anchor", "--target=h100:1"], "must multiply to the 1 devices"),
        (["--config=smollm2_135m_anchor", "--config.init_from=none/x", "--target=h100:1"], "model.d_model"),
        (["--config=llama3_8b_128k_anchor", "--config.mesh.slices=4", "--target=2xv5e:8x8"], "2xv5e:8x8 has 2"),
    ],
)
def test_bad_input_ends_in_one_line(capsys, monkeypatch, argv, words):
    monkeypatch.setattr(targets, "prepare", lambda: None)
    monkeypatch.setattr(targets.Topology, "devices", lambda topology: [None] * int(topology.size))
    assert cli.main(["plan", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1
