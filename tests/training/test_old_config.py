"""A run of an earlier commit, whose config.json has keys by their old names, is resumed, evaluated and exported."""

import json
import shutil

import pytest

from anchorjax.cli import convert
from anchorjax.config import RENAMED
from anchorjax.evaluation.tasks import held_out
from anchorjax.inference import language_model
from anchorjax.pages.runs import reading
from tests.config.test_saved import OLD
from tests.training.jobs import hex_losses


def make_old(workdir) -> None:
    """Replaces config.json by what the earlier commit would have saved: its keys, this run's values."""
    now, old = json.loads((workdir / "config.json").read_text()), json.loads(OLD.read_text())
    for section, values in old.items():
        if not isinstance(values, dict):
            old[section] = now[section]
            continue
        for key in values:
            values[key] = now[section][RENAMED.get(f"{section}.{key}", key).removeprefix(f"{section}.")]
    (workdir / "config.json").write_text(json.dumps(old, indent=2))


@pytest.fixture(scope="module")
def run(jobs):
    """A run that was stopped at step 4 of 8, with an old config.json."""
    workdir = jobs.directory / "old"
    jobs.run(workdir, "--config.train.steps=8", signal_at=("SIGTERM", "train", 4), expect=75)
    make_old(workdir)
    assert "row_length" in (workdir / "config.json").read_text()
    return workdir


def test_it_is_resumed(jobs, run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    err = jobs.run(workdir, "--config.train.steps=8")
    assert "resuming after step" in err
    assert [step for step, *_ in hex_losses(workdir)] == list(range(1, 9))
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["data"]["seq_len"] == 64 and "row_length" not in saved["data"]


def test_another_value_is_still_refused(jobs, run):
    err = jobs.run(run, "--config.train.steps=8", "--config.data.seq_len=128", expect=2)
    assert "data.seq_len: 64 -> 128" in err and err.count("->") == 1, "the old names are no differences"


def test_it_is_evaluated(run):
    assert held_out.load(run).config.data.seq_len == 64
    described = language_model.describe(workdir=run)
    assert (described.context, described.model.d_model, described.is_run) == (64, 32, True)
    (read,) = reading.read([run])
    assert read.config["train"]["grad_accum_steps"] == 1


def test_it_is_exported(run, tmp_path, capsys):
    assert convert.main(["to-hf", str(run), str(tmp_path / "hf")]) == 0, capsys.readouterr().err
    fields = json.loads((tmp_path / "hf/config.json").read_text())
    assert (fields["hidden_size"], fields["head_dim"], fields["max_position_embeddings"]) == (32, 16, 64)
