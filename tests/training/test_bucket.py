"""A run in an object store: its files are there, it resumes from there, and two jobs do not both write there."""

import pathlib
import shutil
import tempfile
import threading

import pytest
from etils.epath import backend, register
from fsspec.implementations.memory import MemoryFileSystem

from anchorjax.errors import PeerError, WorkdirError
from anchorjax.training import bucket, loop
from anchorjax.training.bucket import Bucket
from tests.training.jobs import hex_losses, saved_steps

ADDRESS = "gs://bucket/run"


class InMemory(MemoryFileSystem):
    """Paths as Google's have them."""

    cachable = False
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))

    def __init__(self):
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]


@pytest.fixture
def memory(monkeypatch):
    """gs:// as a file system in memory, behind the library that serves Google's."""
    monkeypatch.setattr(bucket, "PUSH_S", 0.1)
    files = InMemory()
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda *_: files)
    return files


def test_files_are_copied_when_they_change_and_come_back(memory):
    first = Bucket(ADDRESS)
    first.take()
    (first.files / "a.txt").write_text("one")
    (first.files / "tensorboard").mkdir()
    (first.files / "tensorboard/events").write_bytes(b"\0\1")
    first.start()
    (first.files / "b.txt").write_text("two")
    (first.files / "a.txt").unlink()
    first.close()
    again = Bucket(ADDRESS)
    assert sorted(str(file.relative_to(again.files)) for file in again.files.rglob("*") if file.is_file()) == [
        "b.txt",
        "tensorboard/events",
    ]
    assert (again.files / "b.txt").read_text() == "two" and again.owner() == "" and not first.files.exists()


def test_a_living_job_keeps_its_directory(memory):
    first = Bucket(ADDRESS)
    first.take()
    first.start()
    with pytest.raises(WorkdirError, match="another process is training in gs://bucket/run"):
        Bucket(ADDRESS).take()
    first.close()
    Bucket(ADDRESS).take()


def test_what_another_job_wrote_before_it_ended_is_there_when_the_directory_is_taken(memory):
    first = Bucket(ADDRESS)
    first.take()
    (first.files / "a.txt").write_text("one")
    first.start()
    second = Bucket(ADDRESS)
    (first.files / "a.txt").unlink()
    (first.files / "b.txt").write_text("two")
    first.close()
    assert (second.files / "a.txt").exists() and not (second.files / "b.txt").exists(), "nothing changed in between"
    second.take()
    assert {file.name: file.read_text() for file in second.files.iterdir()} == {"b.txt": "two"}
    second.start()
    second.close()
    assert (Bucket(ADDRESS).files / "b.txt").read_text() == "two"


@pytest.mark.parametrize("interrupt", ["in the copy", "on another process"])
def test_a_start_that_fails_leaves_no_local_folder(memory, monkeypatch, tmp_path, tiny_config, interrupt):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("signal.signal", lambda *args: None)  # the handlers of this process stay

    def fail(*_):
        raise KeyboardInterrupt

    def fail_elsewhere(call):
        call()
        raise PeerError(1, "a fault", 1)

    if interrupt == "in the copy":
        monkeypatch.setattr(bucket, "_files", fail)
    else:
        monkeypatch.setattr(loop.processes, "together", fail_elsewhere)
    with pytest.raises((KeyboardInterrupt, PeerError)):
        loop.run(tiny_config(), ADDRESS)
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_was_killed_is_followed_and_one_that_was_not_ends(memory, capsys):
    lost = Bucket(ADDRESS)
    lost.take()  # and no copy follows
    second = Bucket(ADDRESS)
    second.take()
    assert "names a job that did not end" in capsys.readouterr().err
    with pytest.raises(WorkdirError, match="another job has taken gs://bucket/run over"):
        lost.push()
    second.start()
    second.close()


def test_a_copy_in_between_that_fails_ends_nothing_and_the_last_keeps_its_files(memory, monkeypatch):
    first = Bucket(ADDRESS)
    first.take()
    first.start()
    with monkeypatch.context() as broken:
        failed = threading.Event()
        broken.setattr(Bucket, "_copy", lambda _: failed.set() or 1 / 0)
        (first.files / "summary.json").write_text("{}")
        assert failed.wait(10)
    first.push()
    there = Bucket(ADDRESS)
    assert (there.files / "summary.json").exists()
    monkeypatch.setattr(Bucket, "_copy", lambda _: 1 / 0)
    fault = f"cannot be written: division by zero; the newest files are in {first.files}"
    with pytest.raises(WorkdirError, match=fault):
        first.close()
    assert (first.files / "summary.json").exists()
    for one in (first, there):
        shutil.rmtree(one.files)


def test_a_bucket_that_cannot_be_read_is_named(monkeypatch):
    monkeypatch.setitem(register._URI_PREFIXES_TO_CLS, "gs://", lambda _: 1 / 0)
    with pytest.raises(WorkdirError, match="--workdir=gs://bucket/run cannot be read: division by zero"):
        Bucket(ADDRESS)


@pytest.mark.slow
def test_two_processes_resume_from_a_bucket(jobs, tmp_path):
    """The same losses as in a folder, bit for bit; `near://` is a local directory behind the same library."""
    options = ("--config.optimizer.schedule=constant", "--config.mesh.fsdp=2", "--config.mesh.context=2")
    program = [str(pathlib.Path(__file__).with_name("near.py")), str(tmp_path / "bucket")]
    (tmp_path / "bucket").mkdir()
    jobs.run_processes(tmp_path / "folder", *options, "--config.train.steps=8", count=2)
    for steps in (4, 8):
        said = jobs.run_processes("near://run", *options, f"--config.train.steps={steps}", count=2, program=program)
    assert "resuming after step 4" in said[0]
    there = tmp_path / "bucket/run"
    assert hex_losses(there) == hex_losses(tmp_path / "folder")
    assert saved_steps(there)[-1] == 8 and (there / "run.lock").read_text() == ""
    assert {"config.json", "summary.json", "metrics.jsonl"} <= {file.name for file in there.iterdir()}
