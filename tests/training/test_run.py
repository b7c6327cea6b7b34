"""Whole runs: interrupted in every way, they go on as if nothing had happened, or say why they cannot."""

import itertools
import json
import random
import shutil
import signal
import time

import jax
import pytest

from anchorjax import data
from anchorjax.config import load_config
from anchorjax.training import loop
from anchorjax.training.setup import Setup
from anchorjax.training.workdir import Workdir, load_commands
from tests import tiny
from tests.training.jobs import OVERRIDES, hex_held_out, hex_losses, lines, saved_steps

STEPS, EVERY = OVERRIDES["train__steps"], OVERRIDES["checkpoint__every"]


@pytest.fixture(scope="module")
def unbroken(jobs):
    """The directory of a run that nothing interrupted."""
    workdir = jobs.directory / "unbroken"
    jobs.run(workdir)
    assert [step for step, *_ in hex_losses(workdir)] == list(range(1, STEPS + 1))
    return workdir


def assert_same_run(workdir, unbroken):
    assert hex_losses(workdir) == hex_losses(unbroken)
    assert hex_held_out(workdir) == hex_held_out(unbroken)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (workdir, unbroken)]
    assert summaries[0]["validation_loss"] == summaries[1]["validation_loss"]


def test_unbroken_run_leaves_its_results(unbroken):
    names = {path.name for path in unbroken.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "summary.json", "checkpoints"}
    (command,) = load_commands(unbroken)
    assert command.startswith("python train.py --config=") and command.endswith(f"--workdir={unbroken}")
    assert saved_steps(unbroken) == [STEPS - EVERY, STEPS]
    assert [step for step, _ in hex_held_out(unbroken)] == [6, 12, 18, STEPS]
    losses = [line["loss"] for line in lines(unbroken, "train")]
    assert losses[-1] < losses[0] - 0.1


def test_killed_run_resumes_bit_for_bit(jobs, unbroken, tmp_path):
    jobs.run(tmp_path, signal_at=("SIGKILL", "train", 14), expect=-9)
    assert max(saved_steps(tmp_path)) < 14
    err = jobs.run(tmp_path, "--config.data.workers=1")  # other processes may prepare the same data
    assert "resuming after step" in err
    assert_same_run(tmp_path, unbroken)


def test_every_sigterm_saves_and_exits_75(jobs, unbroken, tmp_path):
    """In turn: before an evaluation, at an ordinary step, after an evaluation, and at the very last step."""
    for place in [("train", 6), ("train", 9), ("eval", 18), ("train", STEPS)]:
        err = jobs.run(tmp_path, signal_at=("SIGTERM", *place), expect=75)
        assert "Traceback" not in err
        last = hex_losses(tmp_path)[-1][0]
        assert max(saved_steps(tmp_path)) == last >= place[1], "steps that were trained are lost"
        assert not (tmp_path / "summary.json").exists()
    jobs.run(tmp_path)
    assert hex_losses(tmp_path) == hex_losses(unbroken)
    skipped = (6, hex_held_out(unbroken)[0][1])  # the grace time was for the save
    assert [skipped, *hex_held_out(tmp_path)] == hex_held_out(unbroken)


def test_first_interrupt_saves_as_sigterm_does(jobs, unbroken, tmp_path):
    err = jobs.run(tmp_path, signal_at=("SIGINT", "train", 9), expect=75)
    assert "stopped by SIGINT" in err and "Traceback" not in err
    assert max(saved_steps(tmp_path)) == hex_losses(tmp_path)[-1][0] >= 9
    err = jobs.run(tmp_path)
    assert_same_run(tmp_path, unbroken)


def test_sigterm_while_compiling(jobs, unbroken, tmp_path):
    process = jobs.start(tmp_path)
    for line in process.stderr:
        if "parameters" in line:  # what is said before the first step is compiled
            break
    process.terminate()
    process.communicate(timeout=300)
    assert process.returncode == 75
    assert len(saved_steps(tmp_path)) == 1 and saved_steps(tmp_path)[0] < 6
    jobs.run(tmp_path)
    assert_same_run(tmp_path, unbroken)


def test_kills_at_random_moments_lose_at_most_the_steps_since_a_save(jobs, unbroken, tmp_path):
    rng = random.Random(0)
    for _ in range(2):
        started_at = max(saved_steps(tmp_path), default=0)
        process = jobs.start(tmp_path)
        deadline = time.time() + 120
        while len(hex_losses(tmp_path)) <= started_at + 2 * EVERY and process.poll() is None:
            assert time.time() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        trained = max((step for step, *_ in hex_losses(tmp_path)), default=0)
        # A save may have been under way; the loop waits for it before it reports the step of the next one.
        assert max(saved_steps(tmp_path), default=0) >= max(started_at, (trained // EVERY - 1) * EVERY)
    jobs.run(tmp_path)
    assert_same_run(tmp_path, unbroken)
    partial = [path.name for path in (tmp_path / "checkpoints").iterdir() if not path.name.isdigit()]
    assert not partial, "a killed save's rest is still there"


def test_logged_losses_are_means_and_a_resumed_run_has_the_same(jobs, unbroken, tmp_path):
    """Saves at multiples of 4, lines at multiples of 8: a run resumed at 8 writes the means of an uninterrupted one."""
    every = "--config.train.log_every=8"
    jobs.run(tmp_path, every, signal_at=("SIGKILL", "eval", 12), expect=-9)  # that step is not saved yet
    assert max(saved_steps(tmp_path)) == 8
    err = jobs.run(tmp_path, every)
    steps = lines(unbroken, "train")  # one line a step
    logged = {line["step"]: line for line in lines(tmp_path, "train")}
    assert max(saved_steps(tmp_path)) == STEPS and {8, 16, STEPS} <= logged.keys()
    for first, last in ((9, 16), (17, STEPS)):
        own = steps[first - 1 : last]
        mean = sum(line["loss"] * line["targets"] for line in own) / sum(line["targets"] for line in own)
        assert logged[last]["loss"] == mean != steps[last - 1]["loss"]
        assert logged[last]["grad_norm"] == steps[last - 1]["grad_norm"]
        assert f"step {last}/{STEPS}  loss {mean:.4f}" in err
    assert hex_held_out(tmp_path) == hex_held_out(unbroken)


def test_second_job_in_the_same_directory_is_refused_and_the_first_goes_on(jobs, unbroken, tmp_path):
    first = jobs.start(tmp_path, "--config.train.log_every=2")
    for line in first.stderr:
        if "parameters" in line:
            break
    first.send_signal(signal.SIGSTOP)  # or it may be done before the second has begun
    err = jobs.run(tmp_path, "--config.train.log_every=2", expect=2)
    first.send_signal(signal.SIGCONT)
    assert err.count("\n") == 1 and "another process" in err
    _, err = first.communicate(timeout=300)
    assert first.returncode == 0, err
    assert hex_held_out(tmp_path) == hex_held_out(unbroken)


def test_finished_run_does_not_train_again(jobs, unbroken):
    files = [unbroken / "metrics.jsonl", unbroken / "summary.json"]
    before = [file.read_bytes() for file in files], saved_steps(unbroken)
    err = jobs.run(unbroken, "--config.eval.final_rows=1")
    assert load_config(unbroken)["eval"]["final_rows"] != 1, "its summary is of other rows"
    assert ([file.read_bytes() for file in files], saved_steps(unbroken)) == before
    assert "this run is finished" in err


def test_other_configuration_is_refused(jobs, unbroken):
    err = jobs.run(unbroken, "--config.optimizer.learning_rate=0.5", expect=2)
    assert err.count("\n") == 1 and "optimizer.learning_rate: 0.001 -> 0.5" in err


def test_a_start_that_failed_is_corrected_in_the_same_directory(jobs, tmp_path):
    """Both faults are found after the configuration is compared: one in the text, one in the rows made of it."""
    few = ("--config.train.steps=1", "--config.eval.final_rows=1", "--config.train.objective=exact")
    err = jobs.run(tmp_path, *few, "--config.data.source=nothing", expect=2)
    assert "config.data.source='nothing' is not allowed" in err
    assert not (tmp_path / "config.json").exists()
    err = jobs.run(tmp_path, *few, "--config.data.mask=intra_doc", "--config.train.exact_tail=64", expect=2)
    assert "config.train.exact_tail=64 is not allowed" in err
    jobs.run(tmp_path, *few, "--config.train.exact_tail=16")
    assert saved_steps(tmp_path) == [1] and load_config(tmp_path)["train"]["exact_tail"] == 16
    (command,) = load_commands(tmp_path)
    assert "exact_tail=16" in command


def test_other_configuration_is_refused_before_text_is_read(jobs, unbroken):
    err = jobs.run(unbroken, "--config.data.source=nothing", expect=2)
    assert "data.source: 'public_domain' -> 'nothing'" in err


@pytest.mark.parametrize(("field", "split"), [("fingerprint", "train"), ("held_out_fingerprint", "validation")])
def test_other_text_under_the_same_name_is_refused(jobs, unbroken, tmp_path, field, split):
    workdir = shutil.copytree(unbroken, tmp_path / "run")
    (meta,) = (workdir / "checkpoints" / f"{STEPS:08d}" / "meta").glob("metadata")
    content = json.loads(meta.read_text())
    content["data"][field] = "0" * 64
    meta.write_text(json.dumps(content))
    err = jobs.run(workdir, expect=2)
    assert f"no longer holds the {split} text" in err and "public_domain" in err and "000000000000" in err
    assert "Traceback" not in err


def test_loss_that_is_not_finite_ends_the_run(jobs, tmp_path):
    """Weight decay 1 at rate 3 multiplies every matrix by -2 in each step, until fp32 overflows.

    Slowly enough that there is a save before: at rate 10 logits reach 10^9 in three steps, where the backward
    pass's own logits differ from the forward pass's by more than exp can take.
    """
    options = {
        "learning_rate": 3,
        "weight_decay": 1.0,
        "warmup_steps": 0,
        "schedule": "constant",
        "clip_norm": 0,
    }
    arguments = [f"--config.optimizer.{key}={value}" for key, value in options.items()]
    err = jobs.run(tmp_path, *arguments, "--config.train.steps=48", expect=1)
    message = err.splitlines()[-1]
    assert message.startswith("train.py: ") and "Traceback" not in err
    good = max(step for step, *_ in hex_losses(tmp_path))
    assert f"at step {good + 1};" in message
    assert max(saved_steps(tmp_path)) <= good
    assert not (tmp_path / "summary.json").exists()


def test_sigterm_between_the_question_and_the_first_row_is_no_error(tmp_path, data_dir):
    """The stop flag turns true after the last evaluation has first looked at it: one batch is evaluated in vain."""

    class Stop:
        answers = itertools.chain([None, None], itertools.repeat("SIGTERM"))  # after the step, before the evaluation
        received = None

        def agreed(self):
            self.received = next(self.answers)
            return self.received

    config = tiny.config(data__data_dir=data_dir, data__batch_size=8, train__steps=1, eval__final_rows=32)
    setup, batches = Setup.make(config), []
    section, tokenizer = setup.config.data, setup.store_tokenizer
    stores = {split: data.load_store(section, split, tokenizer) for split in ("train", "validation")}
    with Workdir(tmp_path).open(setup.saved).begin() as directory, jax.set_mesh(setup.mesh):
        job = loop.Job(setup, stores, directory, Stop())
        evaluate = job.evaluate
        job.evaluate = lambda params, rows: evaluate(params, (batches.append(batch) or batch for batch in rows))
        assert job.run() == loop.PREEMPTED
    assert len(batches) == 1
    assert saved_steps(tmp_path) == [1] and not (tmp_path / "summary.json").exists()
