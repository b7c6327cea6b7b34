"""A command line that cannot work ends with code 2 and one line that names key, value and what is allowed."""

import pathlib
import re
import signal
import subprocess
import sys

import pytest

import train
from anchorjax.config import KEYS, manual, overrides
from anchorjax.config.options import Option
from anchorjax.errors import UsageError
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
    (["--config.data.store=/dev/null/x"], ["/dev/null/x/train", "is not a token store"]),
    (["--config.data.store=nowhere"], ["nowhere/train is not a token store"]),
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
    (["--config.data.row_length=64"], ["config.data.row_length='64'", "now config.data.seq_len"]),
    (["--config.train.accumulation=2"], ["config.train.accumulation='2'", "now config.train.grad_accum_steps"]),
    (["--config.lora.targets=q,x"], ["config.lora.targets=('q', 'x')", "one of q, k, v"]),
    (["--config.rope.long_factors=1,x"], ["config.rope.long_factors='1,x'", "float values with commas"]),
    (["--config.lora.targets=('q'"], ["config.lora.targets", "tuple"]),
    (["--noconfig.train.steps"], ["--noconfig.train.steps", "bool"]),
    (["--workdir="], ["--workdir", "DIR"]),
    (["--config=quickstar"], ["no recipe 'quickstar'", "did you mean quickstart?", "./quickstar.py"]),
]


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd, data_dir):
    """Runs train.py's main in this process and checks all but the words; returns the line."""
    tiny.write_file(tmp_path / "tiny.py", data__batch_size=8, data__data_dir=data_dir)

    def run(*arguments: str, config: str = "tiny.py") -> str:
        workdir = tmp_path / "run"
        argv = ["train.py", f"--config={tmp_path / config}", f"--workdir={workdir}", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
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


WORKDIR = {"workdir": Option("", "where", required=True)}


def parse(*argv, options=WORKDIR):
    return overrides.parse(argv, options, "x --config=NAME")


def test_good_command_line_resolves(tmp_path):
    tiny.write_file(tmp_path / "tiny.py")
    argv = [f"--config={tmp_path / 'tiny.py'}", "--workdir=here", "--config.seed=7"]
    argv += ["--config.optimizer.learning_rate=1", "--noconfig.model.tie_embeddings", "--config.data.mask=full"]
    changes = {"optimizer__learning_rate": 1.0, "model__tie_embeddings": False, "data__mask": "full"}
    assert parse(*argv) == (tiny.config(seed=7, **changes), {"workdir": "here"})


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("lora.targets=q,v", "lora.targets", ("q", "v")),
        ("lora.targets=q", "lora.targets", ("q",)),
        ("lora.targets=('q', 'down')", "lora.targets", ("q", "down")),
        ("lora.targets=", "lora.targets", ()),
        ("data.store=", "data.store", ""),
        ("data.source=jsonl:a=b,2;parquet:c", "data.source", "jsonl:a=b,2;parquet:c"),
        ("train.tensorboard", "train.tensorboard", True),
        ("train.tensorboard=False", "train.tensorboard", False),
        ("optimizer.learning_rate=2e-5", "optimizer.learning_rate", 2e-5),
        ("train.steps=1_000", "train.steps", 1000),
        ("mesh.fsdp=1", "mesh.fsdp", 1),
    ],
)
def test_value_is_read_as_its_key_has_it(tmp_path, text, key, value):
    tiny.write_file(tmp_path / "tiny.py")
    config, _ = parse(f"--config={tmp_path / 'tiny.py'}", f"--config.{text}", options={})
    section, name = key.split(".")
    found = getattr(getattr(config, section), name)
    assert (found, type(found)) == (value, type(value))


def test_factors_of_longrope_are_numbers(tmp_path):
    tiny.write_file(tmp_path / "tiny.py", rope__scaling="longrope", rope__original_length=32)
    factors = ",".join(["1.5"] * 8)
    keys = ("short_factors", "long_factors")
    config, _ = parse(
        f"--config={tmp_path / 'tiny.py'}", *(f"--config.rope.{key}={factors}" for key in keys), options={}
    )
    assert config.rope.long_factors == (1.5,) * 8


def test_last_of_several_values_counts(tmp_path):
    tiny.write_file(tmp_path / "tiny.py")
    argv = ["--config=missing.py", f"--config={tmp_path / 'tiny.py'}", "--workdir=a", "--workdir=b"]
    config, options = parse(*argv, "--config.seed=1", "--config.seed=2")
    assert (config.seed, options) == (2, {"workdir": "b"})


def test_what_a_recipe_derives_by_reference_follows_the_command_line(tmp_path):
    lines = ["from anchorjax.config import base", "def get_config():", "    config = base()"]
    lines += [f"    config.update({tiny.mapping()!r})", "    config.data.seq_len = 64"]
    lines += ["    config.train.loss_chunk = config.data.get_ref('seq_len') * 2", "    return config"]
    (tmp_path / "derived.py").write_text("\n".join(lines))
    config, _ = parse(f"--config={tmp_path / 'derived.py'}", "--config.data.seq_len=128", options={})
    assert (config.data.seq_len, config.train.loss_chunk) == (128, 256)


def test_options_of_a_program():
    options = {
        "count": Option(3, "how many"),
        "kind": Option("a", "which", choices=("a", "b")),
        "deep": Option(False, "whether"),
        "runner": Option("", "by what", what="NAME", once=True),
        "beam.": Option((), "for the runner"),
        "even": Option(0, "a number", read=read_even),
        "best": Option(0, "how many to keep", what="N", bare=3),
    }

    def read(*argv):
        return overrides.parse_options(argv, options, "x")

    assert read() == {"count": 3, "kind": "a", "deep": False, "runner": "", "beam.": (), "even": 0, "best": 0}
    found = read("--count=4", "--deep", "--runner=R", "--beam.a=1", "--beam.b", "--even=6", "--best=5")
    assert found == {"count": 4, "kind": "a", "deep": True, "runner": "R", "beam.": ("a=1", "b"), "even": 6, "best": 5}
    assert read("--best")["best"] == 3 and "--best[=N]" in manual.help_text("x", options)
    assert read("--deep", "--nodeep")["deep"] is False
    for argv, words in [
        (["--count=x"], "--count=x is not allowed: it must be int"),
        (["--count"], "--count has no value; write --count=VALUE"),
        (["--kind=c"], "--kind=c is not allowed: it must be one of a, b"),
        (["--deep=maybe"], "--deep=maybe is not allowed: it must be bool"),
        (["--runner="], "--runner has no name; write --runner=NAME"),
        (["--runner=a", "--runner=b"], "there must be one runner"),
        (["--even=5"], "--even=5 is not allowed: 5 is odd"),
        (["--cuont=4"], "--cuont=4 is not understood; did you mean --count?"),
        (["--config.seed=1"], "--config.seed=1 is not understood"),
        (["count=4"], "two dashes"),
    ]:
        with pytest.raises(UsageError, match="^" + re.escape(words) if words[0] == "-" else words):
            read(*argv)


def read_even(text: str) -> int:
    if int(text) % 2:
        raise ValueError(f"{text} is odd")
    return int(text)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--config=missing.py", "--nonsense", "--help"]])
def test_help_shows_every_option_and_key_with_default_and_reason(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and err == ""
    text = " ".join(out.split())
    for name, default in {"data.seq_len": "4096", "lora.targets": "q,k,v,o", "train.tensorboard": "true"}.items():
        assert f"--config.{name}={default}" in text
    for name, key in KEYS.items():
        assert f"--config.{name}=" in text and key.why in text, name
    assert "--workdir=" in text and "where (required)" in text and "at least 2 and at most 16777216" in text
    assert max(map(len, out.splitlines())) <= 120


def test_help_of_the_real_program_ends_with_0():
    done = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and "--config.data.seq_len=4096" in done.stdout


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
