"""`train.steps` grows on resume where the steps that are done would have been the same in the longer run."""

import json
import shutil

import pytest

from anchorjax.config import load_config
from anchorjax.errors import WorkdirError
from anchorjax.training.workdir import Workdir, load_commands
from tests import tiny
from tests.training.jobs import hex_losses

CONSTANT = ("--config.optimizer.schedule=constant", "--config.optimizer.warmup_steps=2")


@pytest.fixture(scope="module")
def short(jobs):
    """The directory of a finished run of 8 steps at a constant learning rate."""
    workdir = jobs.directory / "short"
    jobs.run(workdir, *CONSTANT, "--config.train.steps=8")
    return workdir


def test_a_finished_run_that_grows_is_the_longer_run(jobs, short, tmp_path):
    grown, whole = shutil.copytree(short, tmp_path / "grown"), tmp_path / "whole"
    assert "resuming after step 8" in jobs.run(grown, *CONSTANT, "--config.train.steps=14")
    jobs.run(whole, *CONSTANT, "--config.train.steps=14")
    assert hex_losses(grown) == hex_losses(whole) and len(hex_losses(whole)) == 14
    summaries = [json.loads((run / "summary.json").read_text()) for run in (grown, whole)]
    assert summaries[0]["step"] == 14 and summaries[0]["validation_loss"] == summaries[1]["validation_loss"]
    assert load_config(grown)["train"]["steps"] == 14 and len(load_commands(grown)) == 2


def test_what_the_refusal_of_a_cosine_says_works(jobs, tmp_path):
    first = tmp_path / "first"
    jobs.run(first, "--config.train.steps=8")
    err = jobs.run(first, "--config.train.steps=14", expect=2)
    assert err.count("\n") == 1 and "optimizer.schedule='cosine'" in err
    assert f"give --config.init_from={first} and a new --workdir" in err
    jobs.run(tmp_path / "second", "--config.train.steps=6", f"--config.init_from={first}")
    before, after = hex_losses(first), hex_losses(tmp_path / "second")
    assert float.fromhex(after[0][1]) < float.fromhex(before[0][1]) - 0.5, "it goes on from the trained weights"


def saved_run(path, done: int, **overrides) -> None:
    """A directory as a run at step `done` leaves it, but for what is in its checkpoint."""
    Workdir(path).open(tiny.config(**overrides)).begin().close()
    (path / f"checkpoints/{done:08d}").mkdir(parents=True)


@pytest.mark.parametrize(
    ("schedule", "done", "more", "why"),
    [
        ("constant", 20, {}, None),
        ("wsd", 16, {"optimizer__decay_steps": 4}, None),
        ("wsd", 17, {"optimizer__decay_steps": 4}, "from step 16 on"),
        ("wsd", 18, {}, None),  # a tenth of 20 steps
        ("wsd", 19, {}, "from step 18 on"),
        ("wsd", 20, {}, "it is at step 20"),
        ("cosine", 5, {}, "from step 4 on optimizer.schedule='cosine'"),
        ("linear", 5, {}, "from step 4 on optimizer.schedule='linear'"),
        ("cosine", 4, {}, None),  # still in the warm-up
    ],
)
def test_which_runs_grow(tmp_path, schedule, done, more, why):
    given = {"optimizer__schedule": schedule, "optimizer__warmup_steps": 4, **more}
    saved_run(tmp_path, done, train__steps=20, **given)
    longer = tiny.config(train__steps=40, **given)
    if why is None:
        Workdir(tmp_path).open(longer).begin().close()
        assert load_config(tmp_path)["train"]["steps"] == 40
        return
    with pytest.raises(WorkdirError, match="cannot go from train.steps=20 to 40: .*" + why) as caught:
        Workdir(tmp_path).open(longer)
    assert "\n" not in str(caught.value) and load_config(tmp_path)["train"]["steps"] == 20


def test_fewer_steps_and_other_changes_beside_more_steps_are_refused(tmp_path):
    given = {"optimizer__schedule": "constant", "train__steps": 20}
    saved_run(tmp_path, 5, **given)
    with pytest.raises(WorkdirError, match=r"train\.steps: 20 -> 10"):
        Workdir(tmp_path).open(tiny.config(**given | {"train__steps": 10}))
    with pytest.raises(WorkdirError, match=r"\(seed: 0 -> 1\)"):
        Workdir(tmp_path).open(tiny.config(**given | {"train__steps": 30, "seed": 1}))
    assert load_config(tmp_path)["train"]["steps"] == 20


def test_summary_goes_when_a_finished_run_grows_and_stays_otherwise(tmp_path):
    given = {"optimizer__schedule": "constant"}
    saved_run(tmp_path, 8, train__steps=8, **given)
    (tmp_path / "summary.json").write_text('{"step": 8}')
    Workdir(tmp_path).open(tiny.config(train__steps=8, eval__rows=5, **given)).begin().close()
    assert load_config(tmp_path)["eval"]["rows"] == 2 and (tmp_path / "summary.json").exists()
    Workdir(tmp_path).open(tiny.config(train__steps=9, **given)).begin().close()
    assert load_config(tmp_path)["train"]["steps"] == 9 and not (tmp_path / "summary.json").exists()
