"""Preparation by Apache Beam: the same bytes, the same words about what is wrong, and an end when it is told to end."""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from anchorjax.cli import prepare as prepare_cli
from anchorjax.data.store import beam, pieces
from anchorjax.data.store import preparing as preparing_lib
from anchorjax.data.store.runner import PROCESSES, Runner
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.errors import DataError, PreparationError, UsageError, install_extra
from tests import tiny
from tests.data import preparing
from tests.data.preparing import data_config

ROOT = pathlib.Path(__file__).parents[2]
DIRECT, TWO = Runner("DirectRunner"), Runner("DirectRunner", ("--direct_num_workers=2",))
NUM_FILES = 12
needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="Apache Beam is not installed; `make test-beam` runs this in an environment of its own",
)


@pytest.fixture
def folder(tmp_path):
    """Files of which the sixth has a bad row."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for number in range(NUM_FILES):
        rows = [{"text": f"{number} {i} " * (i % 9 + 1), "source": f"s{(number + i) % 4}"} for i in range(40)]
        preparing.write_jsonl(inputs / f"{number:02d}.jsonl", rows if number != 5 else [*rows, {}])
    return inputs


@pytest.fixture
def expected(tmp_path, folder):
    """What `processes` makes of it."""
    return prepared(folder, tmp_path / "expected", PROCESSES)


def options(folder, store, **changes):
    changes = {"source": f"jsonl:{folder}", "bad_rows": "skip", "held_out_share": 0.2} | changes
    return data_config(store=str(store), **changes)


def prepared(folder, store, runner, **changes) -> dict[str, bytes]:
    preparing_lib.prepare(options(folder, store, **changes), runner=runner)
    assert not store.with_name(f"{store.name}.part").exists()
    return {str(file.relative_to(store)): file.read_bytes() for file in sorted(store.rglob("*")) if file.is_file()}


@needs_beam
@pytest.mark.parametrize(
    ("runner", "workers"),
    [
        (DIRECT, 0),
        (DIRECT, 2),
        (TWO, 0),
        (Runner("tests.data.beam_runners.Twice"), 0),
        # A job server as clusters have one, in the launcher.
        (Runner("PortableRunner", ("--job_endpoint=embed", "--environment_type=LOOPBACK")), 0),
    ],
)
def test_the_store_is_that_of_processes(tmp_path, folder, expected, runner, workers):
    assert prepared(folder, tmp_path / "store", runner, workers=workers) == expected


@needs_beam
@pytest.mark.parametrize(("first", "second"), [(PROCESSES, DIRECT), (DIRECT, PROCESSES), (TWO, DIRECT)])
def test_any_runner_goes_on_where_another_stopped(tmp_path, folder, expected, first, second):
    store = tmp_path / "store"
    with pytest.raises(DataError, match=r"05.jsonl:41: text is missing or null \(.*\); data.bad_rows='skip' leaves"):
        preparing_lib.prepare(options(folder, store, bad_rows="raise"), runner=first)
    (directory,) = (tmp_path / "store.part").glob("pieces-*")
    made = {file: file.stat().st_mtime_ns for file in directory.glob("*.json")}
    assert 0 < len(made) < NUM_FILES and not store.exists()
    (directory / "attempt-old").mkdir()
    (directory / "attempt-old" / "00001.train.tokens").write_bytes(b"half")
    with pytest.raises(DataError, match=r"1 of 481 rows are bad, more than data.max_bad_share=0.0"):
        preparing_lib.prepare(options(folder, store, max_bad_share=0.0), runner=second)
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert not list(directory.glob("attempt-*"))
    assert prepared(folder, store, first) == expected


@pytest.fixture
def pool():
    """The address of a pool of workers that was started by hand, as each machine of a cluster has one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # it starts `python`
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PATH": path}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("localhost", port)):
                break
            assert process.poll() is None and time.monotonic() < deadline, "the pool did not start"
            time.sleep(0.1)
        yield f"localhost:{port}"
    finally:
        process.terminate()
        process.wait(30)


@needs_beam
def test_workers_that_something_else_started_make_the_same(tmp_path, folder, expected, pool):
    options = ("--job_endpoint=embed", "--environment_type=EXTERNAL", f"--environment_config={pool}")
    runner = Runner("PortableRunner", options)
    with pytest.raises(DataError, match=r"05.jsonl:41: text is missing or null \(.*\); data.bad_rows='skip' leaves"):
        prepared(folder, tmp_path / "store", runner, bad_rows="raise")
    assert prepared(folder, tmp_path / "store", runner) == expected


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (DataError("x.jsonl:1: bad"), DataError, "^x.jsonl:1: bad$"),
        (OSError(28, "No space left on device", "/x"), OSError, r"^\[Errno 28\] No space left on device: '/x'$"),
        (KeyError("a fault"), RuntimeError, "(?s)^Traceback .*KeyError: 'a fault'"),
    ],
)
def test_errors_of_workers_keep_their_type(tmp_path, monkeypatch, error, kind, words):
    def fail(*_):
        raise error

    failure = tmp_path / "failure.json"
    monkeypatch.setattr(beam, "_work", lambda file: ({0: None, 1: None}, data_config(), "bytes"))
    monkeypatch.setattr(pieces, "make", fail)
    beam._make(tmp_path, failure, tmp_path / "work", 0)
    monkeypatch.setattr(pieces, "make", None)  # pieces that are not yet begun are left
    beam._make(tmp_path, failure, tmp_path / "work", 1)
    with pytest.raises(kind, match=words):
        beam._raise_failure(failure)
    assert not list(tmp_path.iterdir())
    beam._raise_failure(failure)
    with pytest.raises(FileNotFoundError, match="all workers must share its file system"):
        beam._make(tmp_path / "elsewhere", failure, tmp_path / "work", 0)


@needs_beam
def test_runners_that_fail_say_so(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("BEAM_RUNNER_FILES", str(tmp_path))
    for name, error, words in (
        (
            "Elsewhere",
            DataError,
            r"has ended, but 12 pieces, such as 00000, are not in .*; its workers must share this file system",
        ),
        ("Unreachable", PreparationError, r"Unreachable failed: no route to host \(see .*/store.part/beam.log\)"),
        ("Failing", PreparationError, r"Failing failed: it ended as FAILED"),
    ):
        with pytest.raises(error, match=words):
            preparing_lib.prepare(options(folder, tmp_path / "store"), runner=Runner(f"tests.data.beam_runners.{name}"))
    assert "some words of a cluster" not in (tmp_path / "store.part" / "beam.log").read_text()


def test_attempts_at_a_piece_do_not_meet(tmp_path, folder, monkeypatch):
    """One attempt is held before its first file is in place, while another one is made and used."""
    config, directory = options(folder, tmp_path / "store"), tmp_path / "pieces"
    directory.mkdir()
    shard = preparing_lib._shards(config)[0]
    held, go_on, replace, order = threading.Event(), threading.Event(), os.replace, []

    def slow(source, target):
        if threading.current_thread() is not threading.main_thread():
            order.append(pathlib.Path(target).name)
            held.set()
            assert go_on.wait(10)
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow)
    thread = threading.Thread(target=pieces.write, args=(directory, 0, shard, config, ByteTokenizer()))
    thread.start()
    assert held.wait(10)
    assert pieces.done(directory, 0) is None and pieces.progress(directory)[1] > 0
    pieces.write(directory, 0, shard, config, ByteTokenizer())
    before = {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}
    go_on.set()
    thread.join()
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before and len(before) == 7
    assert order[-1] == "00000.json" and len(order) == 7  # what says that the piece is whole


# --- As a program ---


def test_beam_that_is_not_installed_is_named(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as error:
        preparing_lib.prepare(options(folder, tmp_path / "store"), runner=DIRECT)
    needs = "--runner=DirectRunner needs Apache Beam, in an environment of its own"
    assert str(error.value) == f"{needs}: {install_extra('beam')}"
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runner="], ["--runner has no name", "--runner=NAME"]),
        (["--runner"], ["--runner has no name"]),
        (["--runner=a", "--runner=b"], ["one runner"]),
        (["--runner=a", "--beam.runner=b"], ["one runner"]),
        (["--beam.direct_num_workers=2"], ["--beam.direct_num_workers=2 needs a runner", "--runner=DirectRunner"]),
        (["--runner=processes", "--beam.x"], ["--beam.x needs a runner"]),
        (["--runer=DirectRunner"], ["runer"]),
        pytest.param(["--runner=Foo"], ["--runner=Foo", "FlinkRunner"], marks=needs_beam),
        pytest.param(["--runner=my.Foo"], ["--runner=my.Foo", "No module named 'my'"], marks=needs_beam),
        pytest.param(["--runner=json.Foo"], ["--runner=json.Foo", "no attribute 'Foo'"], marks=needs_beam),
        pytest.param(
            ["--runner=DirectRunner", "--beam.direct_num_worker=2"],
            ["--beam.direct_num_worker is not an option"],
            marks=needs_beam,
        ),
        pytest.param(
            ["--runner=DirectRunner", "--beam.direct_num_workers=two"], ["invalid int value: 'two'"], marks=needs_beam
        ),
    ],
)
def test_bad_argument_is_refused_in_one_line(tmp_path, folder, monkeypatch, capfd, arguments, words):
    monkeypatch.chdir(tmp_path)
    argv = [*command(tmp_path, folder, *arguments)[2:]]
    monkeypatch.setattr(sys, "argv", argv)
    assert prepare_cli.main(argv[2:]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("anchorjax prepare: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs", "tiny.py"]


def command(tmp_path, folder, *arguments):
    tiny.write_file(tmp_path / "tiny.py")
    return [
        *(sys.executable, "-m", "anchorjax", "prepare", f"--config={tmp_path / 'tiny.py'}"),
        *(f"--config.data.source=jsonl:{folder}", f"--config.data.store={tmp_path / 'store'}"),
        *("--config.data.held_out_share=0.2", *arguments),
    ]


@contextlib.contextmanager
def started(tmp_path, *arguments, wait_for):
    """A preparation of large files that has got as far as to leave a file."""
    inputs = tmp_path / "large"
    inputs.mkdir()
    for number in range(24):
        preparing.write_jsonl(inputs / f"{number:02d}.jsonl", [{"text": f"{number} {i} " * 20} for i in range(5000)])
    # In a background job of a script, programs are started deaf to Ctrl-C.
    listens = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True, "preexec_fn": listens}
    process = subprocess.Popen(command(tmp_path, inputs, *arguments), cwd=ROOT, **pipes)
    while process.poll() is None and not list(tmp_path.glob(wait_for)):
        time.sleep(0.002)
    assert process.poll() is None, process.stderr.read()
    family = descendants(process.pid)
    try:
        yield process, family
        _, err = process.communicate(timeout=60)
        deadline = time.monotonic() + 20
        while (left := [pid for pid in family if is_alive(pid)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, "processes stayed behind"
        process.err = err
    finally:
        for pid in filter(is_alive, [process.pid, *family]):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def is_alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


PIECE = "store.part/pieces-*/*.json"


@needs_beam
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_all(tmp_path, workers):
    arguments = ["--runner=DirectRunner", f"--beam.direct_num_workers={workers}"]
    with started(tmp_path, *arguments, wait_for=PIECE) as (process, _):
        os.killpg(process.pid, signal.SIGINT)
    assert (process.returncode, process.err) == (1, "anchorjax prepare: stopped; run the same command to resume\n")


@needs_beam
def test_killed_and_started_again_it_makes_only_what_is_missing(tmp_path, monkeypatch):
    with started(tmp_path, "--runner=DirectRunner", "--config.data.workers=2", wait_for=PIECE) as (process, family):
        assert len(family) > 2
        os.kill(process.pid, signal.SIGKILL)
    made = {file: file.stat().st_mtime_ns for file in tmp_path.glob(PIECE)}
    assert 0 < len(made) < 24 and not (tmp_path / "store").exists()
    whole = prepared(tmp_path / "large", tmp_path / "whole", PROCESSES, bad_rows="raise")
    (tmp_path / "whole").rename(tmp_path / "other")
    joined, join = {}, preparing_lib.joining.join

    def watched(*arguments):
        joined.update({file: file.stat().st_mtime_ns for file in tmp_path.glob(PIECE)})
        return join(*arguments)

    monkeypatch.setattr(preparing_lib.joining, "join", watched)
    assert prepared(tmp_path / "large", tmp_path / "store", DIRECT, bad_rows="raise") == whole
    assert len(joined) == 24 and made.items() <= joined.items()


@needs_beam
def test_a_killed_worker_is_an_error_and_not_a_wait(tmp_path):
    with started(tmp_path, "--runner=DirectRunner", "--config.data.workers=2", wait_for=PIECE) as (process, family):
        is_worker = [b"sdk_worker_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family]
        os.kill(family[is_worker.index(True)], signal.SIGKILL)
    assert process.returncode == 1
    assert (
        process.err
        == "anchorjax prepare: a process was killed (was the memory full?); run the same command to resume\n"
    )


@needs_beam
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("runner", ["Endless", "Slow"])
def test_a_job_on_a_cluster_is_cancelled(tmp_path, monkeypatch, how, runner):
    monkeypatch.setenv("BEAM_RUNNER_FILES", str(tmp_path))
    with started(tmp_path, f"--runner=tests.data.beam_runners.{runner}", wait_for="begun") as (process, _):
        os.kill(process.pid, how)
    assert (tmp_path / "cancelled").exists()
    assert json.loads((tmp_path / "store.part" / "request.json").read_text())
