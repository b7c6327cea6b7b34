"""One job in several processes trains as one process with as many devices, and all of them stop together."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from anchorjax.checkpoints.orbax import Checkpoints
from anchorjax.config import load_config, resolve
from anchorjax.models.linear import named_leaves
from anchorjax.sharding import abstract
from anchorjax.training.state import init_state
from tests import xla
from tests.training.jobs import ROOT, finish, lines, saved_steps
from tests.training.making import make_mesh, make_steps

# Rows over fsdp, tokens over context. Device order puts two context neighbours in one process of two, and each device
# in its own of four: then four processes share two rows.
MESH = ("--config.mesh.fsdp=2", "--config.mesh.context=2", "--config.train.steps=6", "--config.checkpoint.every=2")
TOLERANCE = 1e-6  # relative: other libraries add in another order between processes than between one's devices


def losses(workdir) -> np.ndarray:
    return np.array([(x["step"], x["loss"], x["grad_norm"], x["targets"]) for x in lines(workdir, "train")])


def held_out(workdir) -> np.ndarray:
    return np.array([(x["step"], x["loss"], x["targets"]) for x in lines(workdir, "eval")])


@pytest.fixture(scope="module")
def alone(jobs):
    """The directory of a run in one process, with four devices."""
    workdir = jobs.directory / "alone"
    jobs.run_processes(workdir, *MESH, count=1)
    return workdir


def assert_same_run(workdir, alone):
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=TOLERANCE)
    np.testing.assert_allclose(held_out(workdir), held_out(alone), rtol=TOLERANCE)


def test_two_processes_train_as_one_does(jobs, alone, tmp_path):
    said = jobs.run_processes(tmp_path, *MESH, count=2)
    assert_same_run(tmp_path, alone)
    assert "step 6/6" in said[0] and "step" not in said[1], "process 0 alone prints"
    assert saved_steps(tmp_path) == [4, 6] and (tmp_path / "summary.json").exists()


def test_a_signal_to_one_process_stops_all_at_one_step(jobs, tmp_path):
    started = jobs.start_processes(tmp_path, *MESH, "--config.eval.every=0", count=2)
    while not lines(tmp_path, "train") and started[1].poll() is None:
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    said = finish(started, expect=75)
    assert "stopped by SIGTERM" in said[0] and "Traceback" not in said[0] + said[1]
    assert lines(tmp_path, "train")[-1]["step"] == saved_steps(tmp_path)[-1]


@pytest.mark.slow
def test_four_processes_go_on_from_what_two_saved(jobs, tmp_path):
    constant = ("--config.optimizer.schedule=constant", "--config.eval.every=0")
    jobs.run_processes(tmp_path / "whole", *MESH, *constant, count=1)
    jobs.run_processes(tmp_path / "parts", *MESH, *constant, "--config.train.steps=4", count=2)
    jobs.run_processes(tmp_path / "parts", *MESH, *constant, count=4)
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=TOLERANCE)
    np.testing.assert_allclose(held_out(tmp_path / "parts")[-1:], held_out(tmp_path / "whole"), rtol=TOLERANCE)


def restored(workdir, *mesh: int) -> dict[str, bytes]:
    """The leaves of the newest checkpoint, read by this process onto a mesh of its eight devices."""
    steps = make_steps(resolve(load_config(workdir)))
    with jax.set_mesh(make_mesh(*mesh)):
        like = abstract(lambda: init_state(0, steps.spec, steps.optimizer))
        state, _ = Checkpoints(workdir, keep=1, read_only=True).restore_latest(like)
    return {
        name: np.asarray(jax.random.key_data(x) if name == "key" else x).tobytes()
        for name, x in named_leaves(state).items()
    }


@pytest.mark.slow
def test_what_four_processes_saved_goes_on_with_any_number(jobs, tmp_path):
    """Each reader compares the digests that the four wrote; the losses behind them are those of one unbroken run."""
    constant = ("--config.optimizer.schedule=constant", "--config.eval.every=0")
    jobs.run_processes(tmp_path / "whole", *MESH, *constant, count=1)
    jobs.run_processes(tmp_path / "four", *MESH, *constant, "--config.train.steps=4", count=4)
    leaves = restored(tmp_path / "four", 1)
    for mesh in ((1, 4, 1, 2), (2, 1, 4, 1), (1, 8, 1, 1)):
        assert restored(tmp_path / "four", *mesh) == leaves, mesh
    for count, fsdp, context in ((1, 1, 4), (1, 2, 2), (2, 2, 2), (2, 1, 4)):
        run = shutil.copytree(tmp_path / "four", tmp_path / f"{count}-{fsdp}-{context}")
        mesh = (f"--config.mesh.fsdp={fsdp}", f"--config.mesh.context={context}")
        jobs.run_processes(run, *MESH, *constant, *mesh, count=count)
        np.testing.assert_allclose(losses(run), losses(tmp_path / "whole"), rtol=TOLERANCE)


@pytest.mark.slow
def test_a_process_that_is_killed_within_a_save_costs_the_steps_since_the_last(jobs, alone, tmp_path):
    fault = ("kill in save", 2)  # the save of step 4
    started = jobs.start_processes(tmp_path, *MESH, "--config.train.timeout_s=60", count=2, fault=fault)
    since = time.monotonic()
    finish(started, expect=None, timeout=200)
    assert time.monotonic() - since < 180  # start-up, the heartbeat's 100 s and the shutdown
    assert saved_steps(tmp_path) == [2]
    said = jobs.run_processes(tmp_path, *MESH, count=2)
    assert "resuming after step 2" in said[0]
    np.testing.assert_allclose(losses(tmp_path)[-4:], losses(alone)[-4:], rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (["--config.optimizer.learning_rate=0.5"], "differ in config.optimizer.learning_rate: 0 has 0.001, 1 has 0.5"),
        (["--config.data.tokenizer=nowhere"], "config.data.tokenizer='nowhere' is not allowed"),
    ],
)
def test_a_process_that_differs_or_fails_ends_all_in_one_line_each(jobs, tmp_path, own, words):
    said = jobs.run_processes(tmp_path / "run", *MESH, count=2, own=own, expect=2)
    assert all(words in err and err.count("train.py: ") == 1 and "Traceback" not in err for err in said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("own", [True, False], ids=["of one process", "of all"])
def test_a_command_line_that_is_refused_ends_all_at_once(jobs, tmp_path, own):
    bad, since = ["--config.train.stepps=3"], time.monotonic()
    said = jobs.run_processes(tmp_path / "run", *MESH, *([] if own else bad), count=2, own=bad * own, expect=2)
    assert time.monotonic() - since < 60
    first = "train.py: process 1 failed: " if own else "train.py: "
    assert first + "config.train.stepps" in said[0] and "train.py: config.train.stepps" in said[1]
    assert all(err.count("train.py: ") == 1 and "Traceback" not in err for err in said)
    assert not (tmp_path / "run").exists()


def test_a_directory_that_is_not_shared_is_named(jobs, tmp_path):
    other = [f"--workdir={tmp_path / 'other'}"]
    said = jobs.run_processes(tmp_path / "run", *MESH, count=2, own=other, expect=2)
    assert all("must lie on a file system that all processes share" in err for err in said)


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_kept(jobs, alone, tmp_path):
    """It may be whole: it is neither set aside nor passed over, and no process is left waiting."""
    run = shutil.copytree(alone, tmp_path / "run")
    said = jobs.run_processes(run, *MESH, count=2, fault=("unreadable", 0), expect=1)
    assert all("checkpoint 6 in" in err and "cannot be read" in err and "Traceback" not in err for err in said)
    assert saved_steps(run) == [4, 6] and len(list((run / "checkpoints").iterdir())) == 2


def kill(started):
    started[1].kill()


def freeze(started):
    started[1].send_signal(signal.SIGSTOP)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "act", "words"),
    [
        (("raise", 4), None, "a fault of one process"),
        (("sleep", 4), None, "in shard_and_fail"),
        (None, kill, ""),
        (None, freeze, ""),
    ],
    ids=["raises", "sleeps", "is killed", "is frozen"],
)
def test_a_process_that_is_lost_ends_the_job(jobs, alone, tmp_path, fault, act, words):
    """Within the time that is stated for each; only steps since the last save are lost."""
    steps = () if fault else ("--config.train.steps=2000",)
    started = jobs.start_processes(tmp_path, *MESH, *steps, "--config.train.timeout_s=60", count=2, fault=fault)
    while len(lines(tmp_path, "train")) < 3 and started[0].poll() is None:
        time.sleep(0.01)
    since = time.monotonic()
    if act:
        act(started)
    started[0].wait(timeout=150)
    assert time.monotonic() - since < 130  # the heartbeat's 100 s and the shutdown
    if act is freeze:
        started[1].kill()
    said = finish(started, expect=None, timeout=150)
    assert words in said[1]
    assert saved_steps(tmp_path)[-1] >= 2


@pytest.mark.slow
def test_a_process_that_is_stuck_before_the_first_step_ends_the_job(jobs, tmp_path):
    started = jobs.start_processes(tmp_path, *MESH, "--config.train.timeout_s=10", count=2, fault=("sleep at start", 0))
    said = finish(started, expect=None, timeout=100)
    assert "in _start" in said[1] and "Timeout" in said[1]


@pytest.mark.slow
def test_two_terminals_train_with_the_lines_of_the_page(tmp_path):
    """docs/running.md, as printed."""
    page = (ROOT / "docs/running.md").read_text()
    section = page.partition("## Two terminals on a laptop")[2].partition("\n## ")[0]
    terminals = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert len(terminals) == 2
    programs = pathlib.Path(sys.executable).parent
    env = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "XLA_FLAGS": xla.flags()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(["bash", "-e", "-c", lines], cwd=tmp_path, env=env, **pipes) for lines in terminals]
    said = [process.communicate(timeout=900) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "finished step 20" in said[0][0] and "step 20: loss" in said[0][0]
    assert "finished" not in said[1][0] and saved_steps(tmp_path / "runs/two") == [20]
