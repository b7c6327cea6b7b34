"""Preparing: the same store for any number of processes, after any interruption, and whole or not at all."""

import fcntl
import functools
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from anchorjax.cli import prepare as prepare_cli
from anchorjax.data import load_store
from anchorjax.data.sources import jsonl
from anchorjax.data.store import index as index_lib
from anchorjax.data.store import joining, pieces
from anchorjax.data.store import preparing as preparing_lib
from anchorjax.data.store import tokens as store_lib
from anchorjax.data.store.index import Index
from anchorjax.data.store.preparing import State
from anchorjax.errors import ConfigError, DataError
from tests import tiny
from tests.data import preparing
from tests.data.preparing import data_config

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """Seven files, of which one is compressed, one is empty, and two have a bad row."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for number in range(6):
        rows = [{"text": f"{number} {i} " * (i % 9 + 1), "source": f"s{(number + i) % 4}"} for i in range(40)]
        suffix = ".gz" if number == 3 else ""
        path = preparing.write_jsonl(inputs / f"{number}.jsonl{suffix}", rows)
        if number in (1, 4):
            path.write_bytes(path.read_bytes() + b"{}\n")
    (inputs / "empty.jsonl").write_bytes(b"")
    return inputs


def options(folder, store, **changes):
    changes = {"source": f"jsonl:{folder}", "bad_rows": "skip", "held_out_share": 0.2} | changes
    return data_config(store=str(store), **changes)


def contents(store: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in sorted(store.rglob("*")) if file.is_file()}


def test_the_store_is_the_same_for_any_number_of_processes(tmp_path, folder):
    for workers in (0, 1, 2, 3):
        preparing_lib.prepare(options(folder, tmp_path / f"store{workers}", workers=workers))
    expected = contents(tmp_path / "store0")
    assert len(expected) == 8
    for workers in (1, 2, 3):
        assert contents(tmp_path / f"store{workers}") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs", "store0", "store1", "store2", "store3"]


def test_how_files_are_cut_does_not_change_the_store(tmp_path, folder, monkeypatch):
    preparing_lib.prepare(options(folder, tmp_path / "whole"))
    monkeypatch.setattr(jsonl, "PART_BYTES", 100)
    monkeypatch.setattr(joining, "_VALUES_AT_ONCE", 7)
    preparing_lib.prepare(options(folder, tmp_path / "cut"))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    store_lib.verify(tmp_path / "cut" / "train")


def test_bad_rows_are_counted_where_they_are(tmp_path, folder):
    indices = preparing_lib.prepare(options(folder, tmp_path / "store"))
    assert indices["train"] == Index.read(tmp_path / "store" / "train")
    for index in indices.values():
        assert (index.rows, index.bad_rows) == (242, {"text is missing or null": 2})
        assert index.bad_places == {"text is missing or null": [f"{folder}/{n}.jsonl:41" for n in (1, 4)]}
    assert sum(index.num_documents for index in indices.values()) == 240


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_ends_it_and_leaves_no_store(tmp_path, folder, workers):
    with pytest.raises(DataError, match=r"[14]\.jsonl:41: text is missing or null"):
        preparing_lib.prepare(options(folder, tmp_path / "store", bad_rows="raise", workers=workers))
    assert not (tmp_path / "store").exists()
    preparing_lib.prepare(options(folder, tmp_path / "store"))  # goes on from there with the other policy
    preparing_lib.prepare(options(folder, tmp_path / "other"))
    assert contents(tmp_path / "store") == contents(tmp_path / "other")


def test_too_many_bad_rows_are_refused_until_more_are_allowed(tmp_path, folder, monkeypatch):
    share = 2 / 242
    with pytest.raises(DataError, match=r"2 of 242 rows are bad, more than data.max_bad_share=0.008: text is missing"):
        preparing_lib.prepare(options(folder, tmp_path / "store", max_bad_share=0.008))
    assert not (tmp_path / "store").exists()
    monkeypatch.setattr(pieces, "write", None)  # nothing is read again
    preparing_lib.prepare(options(folder, tmp_path / "store", max_bad_share=share))


def test_rows_that_an_earlier_start_skipped_are_not_forgotten(tmp_path, folder):
    with pytest.raises(DataError, match=r"more than data.max_bad_share"):
        preparing_lib.prepare(options(folder, tmp_path / "store", max_bad_share=0.0))
    with pytest.raises(DataError, match=r"2 of 242 rows are bad: text is missing or null: 2 \(.*/1.jsonl:41, "):
        preparing_lib.prepare(options(folder, tmp_path / "store", bad_rows="raise", max_bad_share=1.0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_of_its_own_for_each_document_is_refused(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(pieces, "MAX_SOURCES", 30)
    monkeypatch.setattr(index_lib, "MAX_SOURCES", 30)
    for name, count in (("one", 40), ("two", 20), ("three", 20)):
        rows = [{"text": "x" * (i + 1), "source": f"{name} {i}"} for i in range(count)]
        preparing.write_jsonl(tmp_path / f"{name}.jsonl", rows)
    with pytest.raises(DataError, match=r"more than 30 sources, such as 'one 30'; set data.source_key to a name"):
        preparing_lib.prepare(options(tmp_path / "one.jsonl", tmp_path / "store1", held_out_share=0.0))
    source = f"jsonl:{tmp_path}/two.jsonl;jsonl:{tmp_path}/three.jsonl"
    with pytest.raises(DataError, match="there are 40 sources, more than 30, such as 'three 19'"):
        preparing_lib.prepare(
            data_config(source=source, store=str(tmp_path / "s"), workers=workers, held_out_share=0.0)
        )


def test_damaged_request_is_refused(tmp_path, folder):
    (tmp_path / "store.part").mkdir()
    (tmp_path / "store.part" / "request.json").write_text("{")
    with pytest.raises(DataError, match=r"request.json is damaged: .*; remove .*/store.part to begin again"):
        preparing_lib.prepare(options(folder, tmp_path / "store"))


def test_no_held_out_document_is_an_error(tmp_path, folder):
    with pytest.raises(DataError, match=r"no document of .* is in the validation split, of 242 rows"):
        preparing_lib.prepare(options(folder, tmp_path / "store", held_out_share=0.0))
    assert not (tmp_path / "store").exists()


def test_an_existing_path_is_not_touched(tmp_path, folder):
    (tmp_path / "store").mkdir()
    for path in (str(tmp_path / "store"), ""):
        with pytest.raises(ConfigError, match=r"data.store=.* must be a path that does not exist"):
            preparing_lib.prepare(options(folder, path))
    assert not list((tmp_path / "store").iterdir())


def test_a_place_that_cannot_be_written_is_named(folder):
    with pytest.raises(DataError, match=r"/dev/null/store cannot be prepared: .*Not a directory"):
        preparing_lib.prepare(options(folder, "/dev/null/store"))


def test_two_at_once_are_refused(tmp_path, folder):
    part = tmp_path / "store.part"
    part.mkdir()
    with open(part / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=f"another process is preparing {tmp_path}/store"):
            preparing_lib.prepare(options(folder, tmp_path / "store"))
    preparing_lib.prepare(options(folder, tmp_path / "store"))


@pytest.mark.parametrize("changed", ["file", "held_out_share", "text_key", "max_row_bytes", "weight"])
def test_pieces_of_something_else_are_not_used(tmp_path, folder, changed):
    with pytest.raises(DataError, match="41: text is missing"):
        preparing_lib.prepare(options(folder, tmp_path / "store", bad_rows="raise"))
    changes = {}
    if changed == "file":
        with open(folder / "0.jsonl", "a") as file:
            file.write('{"text": "more"}\n')
    elif changed == "weight":
        changes = {"source": f"jsonl:{folder},2"}
    else:
        changes = {"held_out_share": 0.3, "text_key": "source", "max_row_bytes": 1000}
        changes = {changed: changes[changed]}
    name = {"file": "inputs", "weight": "source"}.get(changed, changed)
    with pytest.raises(DataError, match=f"store.part is an unfinished preparation of something else .*{name}: "):
        preparing_lib.prepare(options(folder, tmp_path / "store", **changes))


def test_each_request_has_its_own_pieces(tmp_path, folder):
    """A worker of a preparation that was given up may still run and write."""
    for changes in ({}, {"held_out_share": 0.1}):
        with pytest.raises(DataError):
            preparing_lib.prepare(options(folder, tmp_path / "store", max_bad_share=0.0, **changes))
        (tmp_path / "store.part").rename(tmp_path / f"old{len(changes)}")
    assert len({path.name for path in tmp_path.glob("old*/pieces-*")}) == 2


def test_a_worker_with_another_tokenizer_is_refused(tmp_path, folder):
    config = options(folder, tmp_path / "store")
    with pytest.raises(DataError, match=r"data.tokenizer='bytes' is bytes on .*, and not sha256:1"):
        pieces.make(tmp_path, 0, preparing_lib._shards(config)[0], config, "sha256:1")


def test_a_damaged_piece_is_refused(tmp_path, folder):
    with pytest.raises(DataError):
        preparing_lib.prepare(options(folder, tmp_path / "store", max_bad_share=0.0))
    (piece,) = tmp_path.glob("store.part/pieces-*/00002.train.tokens")
    piece.write_bytes(b"")
    with pytest.raises(DataError, match=r"00002.train.tokens is damaged: it has 0 bytes, not"):
        preparing_lib.prepare(options(folder, tmp_path / "store"))


# --- As a program ---

PIECE = "store.part/pieces-*/*.json"


def command(tmp_path, *arguments):
    tiny.write_file(tmp_path / "tiny.py")
    return [sys.executable, "-m", "anchorjax", "prepare", f"--config={tmp_path / 'tiny.py'}", *arguments]


def many_files(tmp_path) -> pathlib.Path:
    inputs = tmp_path / "many"
    inputs.mkdir()
    for number in range(24):
        rows = [{"text": f"{number} {i} " * 20, "source": f"s{number}"} for i in range(3000)]
        preparing.write_jsonl(inputs / f"{number:02d}.jsonl", rows)
    return inputs


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_started_again_it_makes_only_what_is_missing(tmp_path, monkeypatch, workers):
    inputs, store = many_files(tmp_path), tmp_path / "store"
    preparing_lib.prepare(options(inputs, tmp_path / "unbroken"))
    arguments = [f"--config.data.source=jsonl:{inputs}", f"--config.data.store={store}"]
    arguments += ["--config.data.held_out_share=0.2", f"--config.data.workers={workers}"]
    process = subprocess.Popen(command(tmp_path, *arguments), cwd=ROOT, start_new_session=True)
    while process.poll() is None and len(list(tmp_path.glob(PIECE))) < 4:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)  # its workers have to notice
    assert process.wait() == -signal.SIGKILL, "killed too late"
    wait_for_the_end_of_the_group(process.pid)
    done = {int(file.stem) for file in tmp_path.glob(PIECE)}
    assert 4 <= len(done) < 24 and not store.exists()

    made, write = [], pieces.write
    monkeypatch.setattr(pieces, "write", lambda folder, n, *rest: (made.append(n), write(folder, n, *rest)))
    preparing_lib.prepare(options(inputs, store, bad_rows="raise"))
    assert set(made) == set(range(24)) - done and len(made) == len(set(made))
    assert contents(store) == contents(tmp_path / "unbroken")


def wait_for_the_end_of_the_group(group):
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("workers stayed behind")


def test_a_killed_worker_is_an_error_and_not_a_wait(tmp_path):
    inputs, store = many_files(tmp_path), tmp_path / "store"
    arguments = [f"--config.data.source=jsonl:{inputs}", f"--config.data.store={store}", "--config.data.workers=2"]
    process = subprocess.Popen(command(tmp_path, *arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob(PIECE)):
        time.sleep(0.002)
    spawned = [
        pid for pid in children(process.pid) if b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(spawned[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "anchorjax prepare: a process was killed (was the memory full?); run the same command to resume\n"


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_ends_all_processes(tmp_path, workers):
    inputs, store = many_files(tmp_path), tmp_path / "store"
    arguments = [f"--config.data.source=jsonl:{inputs}", f"--config.data.store={store}"]
    arguments.append(f"--config.data.workers={workers}")
    # In a background job of a script, programs are started deaf to Ctrl-C.
    listens = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True, "preexec_fn": listens}
    process = subprocess.Popen(command(tmp_path, *arguments), cwd=ROOT, **pipes)
    while process.poll() is None and not list(tmp_path.glob(PIECE)):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    # A worker that is just being imported says so, too.
    assert (process.returncode, err.splitlines()[-1]) == (
        1,
        "anchorjax prepare: stopped; run the same command to resume",
    )
    wait_for_the_end_of_the_group(process.pid)


def children(pid: int) -> list[int]:
    return [int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()]


def read(path: str) -> bytes:
    return pathlib.Path(path).read_bytes()


def test_prepare_then_train_on_the_store(tmp_path, folder, jobs):
    store = tmp_path / "store"
    arguments = [f"--config.data.source=jsonl:{folder}", f"--config.data.store={store}", "--config.data.bad_rows=skip"]
    arguments += ["--config.data.held_out_share=0.2", "--config.data.workers=2"]
    done = subprocess.run(command(tmp_path, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^train +[\d,]+ tokens in \d+ documents\n +s0: [\d,]+ in \d+\n", done.stdout), done.stdout
    bad = f"bad rows    2 of 242; text is missing or null: 2 ({folder}/1.jsonl:41, {folder}/4.jsonl:41)"
    assert bad in done.stdout and done.stdout.endswith(f"store       {store}/: train/, validation/\n")
    use = [f"--config.data.store={store}", "--config.eval.every=0"]
    err = jobs.run(tmp_path / "run", *use)
    tokens = Index.read(store / "train").num_tokens
    assert f"{tokens:,} tokens in" in err
    # The place of a store may change, its text may not.
    moved = store.rename(tmp_path / "moved")
    use[0] = f"--config.data.store={moved}"
    assert "this run is finished" in jobs.run(tmp_path / "run", *use)
    file = moved / "train" / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "0" * 64}))
    err = jobs.run(tmp_path / "run", *use, expect=2)
    assert f"data.store='{moved}' no longer holds the train text" in err and err.count("\n") == 1
    file.unlink()
    err = jobs.run(tmp_path / "run", *use, expect=2)
    assert err == f"train.py: {moved}/train is not a token store: {file} does not exist\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["config.data.store=''", "a path that does not exist"]),
        (["--workdir=x"], ["--workdir=x is not understood", "Usage: "]),
        (["--config.data.store=x", "--config.data.source=csv:y"], ["config.data.source='csv:y'", "jsonl:PATH"]),
        (["--config.data.store=x", "--config.data.tokenizer=y"], ["config.data.tokenizer='y'", "tokenizer.json"]),
        (["--config.data.bad_rows=ignore"], ["config.data.bad_rows='ignore'", "raise, skip"]),
    ],
)
def test_bad_argument_is_refused_in_one_line(tmp_path, monkeypatch, capfd, arguments, words):
    monkeypatch.chdir(tmp_path)
    argv = command(tmp_path, *arguments)[2:]
    monkeypatch.setattr(sys, "argv", argv)
    assert prepare_cli.main(argv[2:]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("anchorjax prepare: ") and err.count("\n") == 1
    assert all(word in err for word in words), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.py"]


def test_the_progress_line(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    line = prepare_cli.ProgressLine()
    line.show(State(1, 4, 1000))
    line.close()
    assert screen.getvalue() == "", "a log gets a line every 30 seconds"
    screen.isatty = lambda: True
    line.show(State(2, 4, 123_456))
    line.close()
    assert re.fullmatch(r"\r2 of 4 shards, 123,456 tokens, [\d,]+ tokens/s\x1b\[K\n", screen.getvalue())


@pytest.mark.parametrize("source", ["public_domain", "tfds:public_domain"])
def test_a_sized_source_keeps_its_splits(tmp_path, data_dir, source):
    train, validation = preparing.prepare(tmp_path, source, data_dir=data_dir)
    assert (train.num_documents, validation.num_documents) == (1400, 58)
    for split, store in (("train", train), ("validation", validation)):
        in_memory = load_store(data_config(data_dir=data_dir), split, preparing.BYTES)
        assert store.fingerprint == in_memory.fingerprint
        assert preparing.sources(store) == preparing.sources(in_memory)


# --- Memory ---
