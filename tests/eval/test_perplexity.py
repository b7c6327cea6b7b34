"""eval/perplexity.py on a finished run: its own held-out loss again, from its checkpoint, and that of a text."""

import json
import math
import shutil
import subprocess
import sys

import jax
import pytest

from anchorjax.checkpoints.orbax import Checkpoints
from anchorjax.data import eval_rows
from anchorjax.data.store import tokens as store_lib
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.evaluation.tasks import held_out
from anchorjax.inference import language_model
from anchorjax.training.evaluate import Evaluator
from eval import perplexity as script
from tests.eval import plotted
from tests.evaluation import typed
from tests.training.jobs import ROOT


@pytest.fixture(scope="module")
def finished(jobs):
    workdir = jobs.directory / "finished"
    jobs.run(workdir)
    return workdir


def perplexity(jobs, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "eval/perplexity.py"), *arguments]
    return subprocess.run(command, cwd=jobs.directory, env=jobs.env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def evaluated(jobs, finished):
    """What the script printed."""
    done = perplexity(jobs, f"--workdir={finished}", "--rows=2")
    assert done.returncode == 0, done.stderr
    return done


def test_equals_the_run_s_own_held_out_loss(finished, evaluated):
    done = evaluated
    assert "Traceback" not in done.stderr and "WARNING" not in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    summary = json.loads((finished / "summary.json").read_text())
    assert result["loss"] == summary["validation_loss"]
    assert result["bits_per_byte"] == summary["bits_per_byte"]
    assert result["step"] == summary["step"]
    assert math.isclose(result["perplexity"], math.exp(result["loss"]))
    assert list(result["by_position"]) == ["0-64"] and set(result["by_context"]) == {"0-64"}
    assert math.isclose(result["by_position"]["0-64"], result["loss"], rel_tol=1e-6)
    assert json.loads((finished / "eval/perplexity/perplexity.json").read_text()) == result
    answers = map(json.loads, (finished / "eval/perplexity/answers.jsonl").open())
    weights_id = Checkpoints(finished, keep=1, read_only=True).weights_id(result["step"])
    assert {answer["weights_id"] for answer in answers if "score" in answer} == {weights_id}


def test_an_earlier_checkpoint_is_scored_as_when_it_was_the_newest(finished, tmp_path, capsys):
    steps = Checkpoints(finished, keep=1, read_only=True).steps()
    assert steps[-1] == 24 and len(steps) > 1
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    found = {}
    for name, options in {"chosen": [f"--step={steps[-2]}"], "newest": []}.items():
        if not options:
            shutil.rmtree(run / "checkpoints" / f"{steps[-1]:08d}")
        assert script.main([f"--workdir={run}", "--rows=2", f"--out={tmp_path / name}", *options]) == 0
        found[name] = json.loads((tmp_path / name / "perplexity.json").read_text())
        del found[name]["commands"]
    assert found["chosen"] == found["newest"] and found["chosen"]["step"] == steps[-2]
    capsys.readouterr()
    assert script.main([f"--workdir={run}", "--step=3"]) == 2
    assert f"--step=3 is not one of {', '.join(map(str, steps[:-1]))}" in capsys.readouterr().err


def test_losses_by_place_are_drawn(finished, evaluated, tmp_path, drawn):
    """The same answers give the same picture, whose data only this process knows."""
    out = shutil.copytree(finished / "eval/perplexity", tmp_path / "out")
    (out / "perplexity.png").unlink()
    assert script.main([f"--workdir={finished}", "--rows=2", f"--out={out}"]) == 0
    assert (out / "perplexity.png").read_bytes() == (finished / "eval/perplexity/perplexity.png").read_bytes()
    result = json.loads(evaluated.stdout.splitlines()[-1])
    assert plotted.lines(drawn(out / "perplexity.png")) == {
        "loss by place in row": ([64], [result["by_position"]["0-64"]]),
        "loss by place in document": ([64], [result["by_context"]["0-64"]]),
    }


@pytest.mark.usefixtures("evaluated")
def test_the_recorded_command_gives_the_same_and_leaves_the_run_as_it_was(jobs, finished):
    """Beside eval/."""

    def files():
        found = (path for path in finished.rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in found if path.relative_to(finished).parts[0] != "eval"}

    before = files()
    file = finished / "eval/perplexity/perplexity.json"
    command = typed.assert_makes_the_same(lambda options: perplexity(jobs, *options).returncode, file)
    assert command == f"python eval/perplexity.py --workdir={finished} --rows=2"
    assert files() == before


def test_a_killed_evaluation_of_packed_rows_goes_on(finished, tmp_path, monkeypatch, capsys):
    """Each batch is scored once, and the result has the same bits."""
    scored, sums = [], Evaluator.sums

    def at_most(count: int):
        def one(self, params, batch):
            if len(scored) == count:
                raise KeyboardInterrupt
            scored.append(batch)
            return sums(self, params, batch)

        monkeypatch.setattr(Evaluator, "sums", one)
        return script.main([f"--workdir={finished}", "--rows=24", f"--out={tmp_path}"])

    assert at_most(2) == 1
    assert "stopped; run the same command to resume" in capsys.readouterr().err
    assert at_most(9) == 0 and len(scored) == 3
    found = json.loads((tmp_path / "perplexity.json").read_text())
    shutil.rmtree(tmp_path)
    assert at_most(9) == 0 and len(scored) == 6
    assert json.loads((tmp_path / "perplexity.json").read_text()) == found


def test_a_text_is_scored_as_a_row_that_one_document_fills(finished, tmp_path, monkeypatch):
    """An anchor, then the document, as in training."""
    text = "It is a truth universally acknowledged, that a single man in po"
    (tmp_path / "text.txt").write_text(text)
    make_mesh, out = language_model.make_mesh, tmp_path / "out"
    monkeypatch.setattr(language_model, "make_mesh", lambda model: make_mesh(model, 1))  # compiles faster
    arguments = [f"--workdir={finished}", f"--text={tmp_path / 'text.txt'}", "--lengths=64", f"--out={out}"]
    assert script.main(arguments) == 0
    result = json.loads((out / "perplexity.json").read_text())
    found = result["lengths"]["64"]

    setup, tokenizer = held_out.load(finished), tokenizer_lib.load("bytes")
    state, _ = Checkpoints(finished, keep=1, read_only=True).restore_latest(setup.abstract_state())
    (batch,) = eval_rows(store_lib.build([{"text": text}], tokenizer), tokenizer, setup.config.data, 1)
    batch.is_target_BT[:, 63:] = 0  # the end of sequence, which a text that may be cut is not asked for
    with jax.set_mesh(setup.mesh):
        packed = Evaluator(setup.steps, tokenizer.token_bytes_V, setup.mesh)(state.params, [batch])
    assert found["targets"] == packed["targets"] == len(text) == 63
    assert result["step"] == 24
    for name in ("loss", "bits_per_byte"):
        assert math.isclose(found[name], packed[name], rel_tol=1e-5)


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
    workdir = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    config = json.loads((workdir / "config.json").read_text())
    config["attention"] = attention
    (workdir / "config.json").write_text(json.dumps(config))
    done = perplexity(jobs, f"--workdir={workdir}", "--rows=2")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("perplexity.py: ")]
    assert "the run's attention does not fit" in line and "taking auto" in line
    summary = json.loads((finished / "summary.json").read_text())
    assert math.isclose(json.loads(done.stdout.splitlines()[-1])["loss"], summary["validation_loss"], rel_tol=1e-4)


def test_a_model_that_is_no_run_needs_a_text(finished, tmp_path, capsys):
    """Such as a directory of anchorjax convert."""
    config = json.loads((finished / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({name: config[name] for name in ("model", "rope")}))
    assert script.main([f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is a model's directory and no run" in error and "give --text" in error


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--workdir=nowhere"], 2, "there is no run in nowhere"),
        (["--workdir=nowhere", "--rows=-1"], 2, "argument --rows: '-1' is not a whole number of 0 or more"),
    ],
)
def test_faults_are_one_line(jobs, arguments, code, message):
    done = perplexity(jobs, *arguments)
    assert done.returncode == code
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "unfit",
    [
        {"mesh__context_layout": "zigzag", "data__seq_len": 66},
        {"mesh__context_strategy": "ulysses", "mesh__ulysses_head_chunks": 2},
    ],
)
def test_what_does_not_fit_the_devices_is_left_to_the_defaults_with_a_line(tiny_config, unfit, capsys):
    config = tiny_config(mesh__fsdp=1, mesh__context=2, **unfit)
    fitted = held_out._fit_devices(config, 2)
    assert capsys.readouterr().err.startswith("perplexity.py: the run's attention does not fit (config.")
    assert fitted.mesh == tiny_config(mesh__fsdp=1, mesh__context=2).mesh
