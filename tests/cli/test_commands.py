"""One program for all commands: what it lists, what it refuses, and how soon."""

import subprocess
import sys

import pytest

import anchorjax
from anchorjax import accelerators, cli
from anchorjax.evaluation import COMMANDS


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and all(f"\n  {name} " in out for name in cli.COMMANDS)


def test_help_lists_every_task(capsys):
    assert cli.main(["evaluate", "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and all(f"\n  {name} " in out for name in COMMANDS)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"anchorjax {anchorjax.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "anchorjax: no command is given; there are train, prepare, "),
        (["trian"], "anchorjax: unknown command 'trian'; there are train, "),
        (["xyz"], "anchorjax: unknown command 'xyz'; there are train, "),
        (["evaluate"], "anchorjax evaluate: no task is given; there are ruler, "),
        (["evaluate", "rulr"], "anchorjax evaluate: unknown task 'rulr'; there are ruler, "),
    ],
)
def test_an_unknown_name_is_refused_in_one_line(capsys, argv, words):
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(words) and err.count("\n") == 1
    likely = {"trian": "train", "rulr": "ruler"}.get(argv[-1] if argv else "")
    assert err.endswith(f"; did you mean {likely!r}?\n") if likely else "did you mean" not in err


def test_messages_begin_with_what_was_typed(capsys, monkeypatch):
    for program, start in (("/usr/bin/anchorjax", "anchorjax evaluate needle: "), ("eval/needle.py", "needle.py: ")):
        monkeypatch.setattr(sys, "argv", [program])
        assert cli.main(["evaluate", "needle", "--hf=nowhere"]) == 2
        assert capsys.readouterr().err.startswith(f"{start}nowhere is not a directory")


def test_an_address_is_no_folder_of_its_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--config=quickstart", "--workdir=http://bucket/run"]) == 2
    assert "--workdir=http://bucket/run is not allowed: it must be a path, or" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["trian"], ["evaluate", "rulr"], ["--version"]],
    ids=" ".join,
)
def test_a_bad_command_line_does_not_wait_for_jax(argv, tmp_path):
    code = f"import sys; from anchorjax import cli; sys.argv[1:] = {argv}; cli.main(); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_the_module_is_the_same_program(tmp_path):
    command = [sys.executable, "-m", "anchorjax", "train", "--workdir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("anchorjax train: --config is missing") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("nodes", "backend", "platforms", "package"),
    [
        (["nvidia0", "nvidiactl"], "cpu", None, "jax[cuda13]=="),
        (["dxg"], "cpu", "", "jax[cuda13]=="),
        (["accel3"], "cpu", None, "jax[tpu]=="),
        (["vfio/7", "vfio/vfio"], "cpu", "cuda,cpu", "jax[tpu]=="),
        (["nvidia0"], "cpu", "cpu", None),
        (["nvidia0"], "gpu", None, None),
        (["nvidiactl", "vfio/vfio"], "cpu", None, None),
        ([], "cpu", None, None),
    ],
)
def test_an_accelerator_that_jax_does_not_use_is_told_with_its_package(tmp_path, nodes, backend, platforms, package):
    for node in nodes:
        (tmp_path / node).parent.mkdir(exist_ok=True)
        (tmp_path / node).write_bytes(b"")
    environ = {} if platforms is None else {"JAX_PLATFORMS": platforms}
    line = accelerators.unused(backend, environ, tmp_path)
    assert line is None if package is None else package in line and "\n" not in line
