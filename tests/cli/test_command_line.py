"""A command line that cannot work ends with code 2 and one line that names key, value and what is allowed."""

import pathlib
import signal
import subprocess
import sys

import pytest

import train
from anchorjax.cli import command_line
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
BAD_FILES = {
    "raises.py": ("def get_config():\n    raise ValueError('two\\nboom')\n", ["boom"]),
    "asserts.py": ("def get_config():\n    assert False\n", ["AssertionError"]),
    "syntax.py": ("def get_config(:\n", ["syntax"]),
    "imports.py": ("import nonexistent_module\n", ["nonexistent_module"]),
    "without.py": ("x = 1\n", ["get_config"]),
    "none.py": ("def get_config():\n    pass\n", ["ConfigDict", "NoneType"]),
    "dict.py": ("def get_config():\n    return {'seed': 0}\n", ["ConfigDict", "dict"]),
}
# Arguments after --config and --workdir, and what the line must say.
BAD_ARGUMENTS = [
    (["--config.train.stepz=5"], ["config.train.stepz='5'", "did you mean config.train.steps"]),
    (["--config.trian.steps=5"], ["config.trian.steps='5'", "train"]),
    (["--config.train.steps.more=5"], ["config.train.steps.more='5'"]),
    (["config.train.steps=5"], ["config.train.steps=5", "two dashes"]),
    (["-config.train.steps=5"], ["config.train.steps=5", "two dashes"]),
    (["--config.train.steps", "5"], ["'5'", "no space"]),
    (["--config.train.steps"], ["config.train.steps"]),
    (["--config.train.steps=abc"], ["config.train.steps='abc'", "int"]),
    (["--config.train.steps=1.5"], ["config.train.steps='1.5'", "int"]),
    (["--config.train.steps=-1"], ["config.train.steps=-1", "at least 1"]),
    (["--config.train.steps=" + "9" * 400], ["config.train.steps=999", "at most 2147483647"]),
    (["--config.train.tensorboard=maybe"], ["config.train.tensorboard='maybe'", "bool"]),
    (["--config.optimizer.learning_rate=nan"], ["config.optimizer.learning_rate=nan", "finite"]),
    (["--config.optimizer.learning_rate=-0.1"], ["config.optimizer.learning_rate=-0.1", "above 0"]),
    (["--config.optimizer.learning_rate=fast"], ["config.optimizer.learning_rate='fast'", "float"]),
    (["--config.train=5"], ["config.train='5'", "section", "steps"]),
    (["--config.model.num_kv_heads=3"], ["config.model.num_kv_heads=3", "model.num_heads=2"]),
    (["--config.model.vocab_size=100"], ["config.model.vocab_size=100", "259"]),
    (["--config.mesh.context=3"], ["config.mesh.context=3", "8 devices"]),
    (["--config.data.batch_size=6"], ["config.data.batch_size=6", "8"]),
    (["--config.data.source=nope"], ["config.data.source='nope'", "public_domain"]),
    (["--config.data.source=tfds:nope"], ["config.data.source='tfds:nope'"]),
    (["--config.data.source=jsonl:x.jsonl"], ["config.data.source='jsonl:x.jsonl'", "anchorjax prepare"]),
    (["--config.data.store=/dev/null/x"], ["/dev/null/x/train", "cannot be read"]),
    (["--config.data.store=nowhere"], ["nowhere/train is no token store"]),
    (["--config.data.bad_rows=drop"], ["config.data.bad_rows='drop'", "raise, skip"]),
    (["--config.data.held_out_share=0.6"], ["config.data.held_out_share=0.6", "at most 0.5"]),
    (["--config.data.data_dir=/dev/null/x"], ["config.data.data_dir='/dev/null/x'"]),
    (["--", "--config.train.steps=5"], ["'--'"]),
    (["--noconfig.train.tensorboard=maybe"], ["tensorboard"]),
    (["--flagfile=/nonexistent"], ["--flagfile=/nonexistent"]),
    (["--config.attention.implementation=pallas_tpu"], ["q_tile=32", "multiples of 128"]),
    (
        [
            "--config.attention.implementation=pallas_tpu",
            "--config.attention.q_tile=128",
            "--config.attention.kv_tile=128",
        ],
        ["config.attention.implementation='pallas_tpu'", "needs TPUs"],
    ),
    (["--config.attention.q_tile=1"], ["config.attention.q_tile=1", "8 or more"]),
    (
        ["--config.attention.q_tile=8", "--config.data.seq_len=131072"],
        ["config.attention.q_tile=8", "8192 tiles at most", "16384"],
    ),
    (["--wrokdir=x"], ["wrokdir", "workdir"]),
    (["--help"], ["--config", "--workdir"]),
]


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd, data_dir):
    """Runs train.py's main in this process and checks all but the words; returns the line."""
    tiny.write_file(tmp_path / "tiny.py", data__batch_size=8, data__data_dir=data_dir)

    def run(*arguments: str, config: str = "tiny.py") -> str:
        workdir = tmp_path / "run"
        argv = ["train.py", f"--config={tmp_path / config}", f"--workdir={workdir}", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        sys.modules.pop("config_config", None)  # ml_collections loads each file over the one before
        assert train.main() == 2
        out, err = capfd.readouterr()
        assert out == "" and err.endswith("\n") and err.count("\n") == 1, err
        assert not workdir.exists()
        assert err.startswith("train.py: ")
        return err

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("arguments", "words"), BAD_ARGUMENTS, ids=[" ".join(a)[:40] for a, _ in BAD_ARGUMENTS])
def test_bad_argument_is_refused_in_one_line(refused, arguments, words):
    line = refused(*arguments)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("name", [*BAD_FILES, "missing.py", "."])
def test_bad_config_file_is_refused_in_one_line(refused, tmp_path, name):
    text, words = BAD_FILES.get(name, (None, ["directory"]))
    if text:
        (tmp_path / name).write_text(text)
    line = refused(config=name)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("missing", ["--config", "--workdir"])
def test_missing_flag_is_named(monkeypatch, capfd, missing):
    flags = {"--config": "configs/quickstart.py", "--workdir": "unused"}
    monkeypatch.setattr(sys, "argv", ["train.py", *(f"{k}={v}" for k, v in flags.items() if k != missing)])
    assert train.main() == 2
    assert f"{missing} is missing" in capfd.readouterr().err


def test_workdir_that_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be used" in refused(f"--workdir={tmp_path / 'file'}")


def test_good_command_line_resolves(tmp_path, monkeypatch):
    tiny.write_file(tmp_path / "tiny.py")
    argv = ["train.py", f"--config={tmp_path / 'tiny.py'}", "--workdir=here", "--config.seed=7"]
    argv += [
        "--config.optimizer.learning_rate=1",
        "--noconfig.model.tie_embeddings",
        "--config.data.mask=full",
    ]
    monkeypatch.setattr(sys, "argv", argv)
    config, workdir = command_line.parse(sys.argv)
    changes = {"optimizer__learning_rate": 1.0, "model__tie_embeddings": False, "data__mask": "full"}
    assert (config, workdir) == (tiny.config(seed=7, **changes), "here")


@pytest.mark.parametrize(
    "arguments",
    [["--config.train.stepz=5"], ["--config.model.vocab_size=100"], ["--config=missing.py"], ["--config=none.py"]],
)
def test_the_real_program_says_the_same(tmp_path, arguments):
    (tmp_path / "none.py").write_text(BAD_FILES["none.py"][0])
    arguments = [argument.replace("none.py", str(tmp_path / "none.py")) for argument in arguments]
    argv = ["--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}", *arguments]
    done = subprocess.run([sys.executable, "train.py", *argv], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("train.py: ") and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()
