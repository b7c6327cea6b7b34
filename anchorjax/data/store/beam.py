"""Pieces by Apache Beam: Create(numbers of missing shards) -> Reshuffle -> a function that writes one piece.

The pipeline carries numbers only; shards are read from a file in the preparation's directory, which all workers must
see, and pieces go straight into it. The pipeline is run by a process of its own, the launcher, which leads a process
group. So whatever a runner starts on this machine ends with this process, and what it prints goes into
STORE.part/beam.log. The only file that knows apache_beam.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from anchorjax.config import DataConfig
from anchorjax.data.sources import Weighted
from anchorjax.data.store import pieces
from anchorjax.data.store.processes import KILLED
from anchorjax.data.store.runner import Runner
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.errors import DataError, PreparationError, UsageError, install_extra
from anchorjax.files import write_atomically

_DONE = "done"
_ERRORS = {"DataError": DataError, "OSError": OSError}  # others are faults of the program: a traceback
_SECONDS_TO_CANCEL = 30  # a job on a cluster
_SECONDS_TO_SUBMIT = 20  # of these; a job can be cancelled once it is submitted


def check(runner: Runner, config: DataConfig) -> None:
    """Raises UsageError if Beam is not installed, or does not know the runner or an option."""
    if importlib.util.find_spec("apache_beam") is None:
        needs = f"--runner={runner.name} needs Apache Beam, in an environment of its own"
        raise UsageError(f"{needs}: {install_extra('beam')}")
    printed = io.StringIO()
    try:
        with _silent(), contextlib.redirect_stderr(printed):
            _pipeline(runner, config)
            unknown = _unknown_options(runner)
    except SystemExit as error:  # argparse's
        reason = (printed.getvalue().strip().splitlines() or ["?"])[-1].partition("error: ")[2]
        raise UsageError(f"an option of Beam is not understood: {reason}; write --beam.NAME=VALUE") from error
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise UsageError(f"--runner={runner.name} cannot be used: {' '.join(str(error).split())}") from error
    if unknown:
        raise UsageError(f"--beam.{unknown[0]} is not an option of Beam that --runner={runner.name} knows")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Beam warns of optional parts that are not installed, and gives the root logger a handler if it has none."""
    handler, before = logging.NullHandler(), logging.root.manager.disable
    logging.root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(handler)


def _is_direct(runner: Runner) -> bool:
    return runner.name.lower().removesuffix("runner") == "direct"  # Beam is as lenient


def _pipeline(runner: Runner, config: DataConfig) -> Any:
    import apache_beam
    from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

    if not _is_direct(runner):
        return apache_beam.Pipeline(runner=runner.name, options=PipelineOptions(list(runner.options)))
    # Of an option that is given twice the last counts: the user's.
    flags = [f"--direct_num_workers={max(1, config.workers)}", *runner.options]
    workers = PipelineOptions(flags).view_as(DirectOptions).direct_num_workers
    mode = "in_memory" if workers == 1 else "multi_processing"  # threads would share Python's lock
    # What Beam (2.77) calls DirectRunner first tries Prism, a program that it downloads.
    options = PipelineOptions([f"--direct_running_mode={mode}", *flags])
    return apache_beam.Pipeline(runner="FnApiRunner", options=options)


def _unknown_options(runner: Runner) -> list[str]:
    """Beam drops them with a warning. Others than the direct runner may hand them to their cluster."""
    from apache_beam.options.pipeline_options import PipelineOptions

    if not _is_direct(runner):
        return []
    options = PipelineOptions(list(runner.options))
    return sorted(set(options.get_all_options(retain_unknown_options=True)) - set(options.get_all_options()))


def write(
    directory: Path, missing: Mapping[int, Weighted], config: DataConfig, tokenizer_name: str, runner: Runner
) -> None:
    """Writes the pieces of the missing shards, by number.

    Raises:
      DataError: what `pieces.make` raises, in whichever worker, or workers do not see `directory`.
      PreparationError: the runner failed, or a process of it was killed.
      OSError: of a worker.
    """
    if config.tokenizer != ByteTokenizer.name:  # workers have other working directories and homes
        config = dataclasses.replace(config, tokenizer=str(Path(config.tokenizer).expanduser().absolute()))
    # A worker of a start before may still run somewhere; its failure is not this start's.
    start = uuid.uuid4().hex
    failure, work = directory.parent / f"failure-{start}.json", directory.parent / f"work-{start}.pickle"
    work.write_bytes(pickle.dumps((dict(missing), config, tokenizer_name)))  # too large for a message, if many
    log = directory.parent / "beam.log"
    spawn = multiprocessing.get_context("spawn")
    connection, theirs = spawn.Pipe()
    make = functools.partial(_make, directory, failure, work)
    launcher = spawn.Process(target=_launch, args=(theirs, log, runner, config, make, list(missing)))
    with connection:
        launcher.start()
        theirs.close()
        try:
            word = _wait(launcher, connection, failure)
        finally:
            connection.close()  # the launcher cancels what it has begun, and ends its group
            _end(launcher)
            work.unlink()
        _raise_failure(failure)
    if word != _DONE:
        raise PreparationError(word or KILLED)
    os.listdir(directory)  # clients of NFS then forget which names were not there
    absent = [number for number in missing if pieces.done(directory, number) is None]
    if absent:
        raise DataError(
            f"{runner.name} has ended, but {len(absent)} pieces, such as {absent[0]:05d}, are not in {directory}; "
            "its workers must share this file system"
        )


def _wait(launcher: Any, connection: multiprocessing.connection.Connection, failure: Path) -> str | None:
    """What the launcher says at its end; None if it says nothing, or a piece has failed."""
    while not failure.exists():
        if multiprocessing.connection.wait([connection, launcher.sentinel], 0.5):
            with contextlib.suppress(EOFError):
                return connection.recv() if connection.poll() else None
            return None
    return None


def _end(launcher: Any) -> None:
    multiprocessing.connection.wait([launcher.sentinel], _SECONDS_TO_CANCEL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.kill()  # if it was not yet a group's leader
    launcher.join()


def _raise_failure(failure: Path) -> None:
    try:
        content = json.loads(failure.read_text())
    except FileNotFoundError:
        return
    failure.unlink()
    raise _ERRORS.get(content["kind"], RuntimeError)(content["text"])


# --- In the launcher ---


def _launch(
    connection: multiprocessing.connection.Connection,
    log: Path,
    runner: Runner,
    config: DataConfig,
    make: Any,
    numbers: list[int],
) -> None:
    os.setsid()  # a terminal's Ctrl-C does not come here: the parent answers it
    with open(log, "w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # workers on this machine import as we do
    os.environ.setdefault("RAYON_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // max(1, config.workers))))
    results: list[Any] = []
    submitted = threading.Event()
    if _is_direct(runner):  # its job is over when `run` returns, and ends with this process
        submitted.set()
    threading.Thread(target=_follow, args=(connection, submitted, results), daemon=True).start()
    threading.excepthook = functools.partial(_thread_failed, connection)
    try:
        import apache_beam

        pipeline = _pipeline(runner, config)
        missing = pipeline | "Missing" >> apache_beam.Create(numbers, reshuffle=False)
        _ = missing | "Spread" >> apache_beam.Reshuffle() | "Make" >> apache_beam.Map(make)
        try:
            results.append(pipeline.run())
        finally:
            submitted.set()
        state = results[0].wait_until_finish()
        if state not in (None, "DONE"):
            raise RuntimeError(f"it ended as {state}")
        connection.send(_DONE)
    except Exception as error:
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" \t<>")]  # gRPC's end with ">"
        connection.send(f"{runner.name} failed: {(lines or [type(error).__name__])[-1]} (see {log})")


def _follow(connection: multiprocessing.connection.Connection, submitted: threading.Event, results: list[Any]) -> None:
    """Ends the group with the parent, whether that closes the connection or is killed."""
    connection.poll(None)
    submitted.wait(_SECONDS_TO_SUBMIT)
    for result in results:
        with contextlib.suppress(Exception):
            result.cancel()
    os.killpg(0, signal.SIGKILL)


def _thread_failed(connection: multiprocessing.connection.Connection, args: threading.ExceptHookArgs) -> None:
    """When the direct runner's worker process is killed, the thread that watches it fails and others wait for ever."""
    threading.__excepthook__(args)
    if args.thread and args.thread.name.startswith("run_worker"):
        connection.send(KILLED)
        os.killpg(0, signal.SIGKILL)


# --- In workers, anywhere ---


def _make(directory: Path, failure: Path, work: Path, number: int) -> None:
    """An error goes into a file: it keeps its type, runners do not try again, and pieces not yet begun are left."""
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not on {socket.gethostname()}: all workers must share its file system")
    if failure.exists() or pieces.done(directory, number) is not None:
        return
    try:
        shards, *rest = _work(work)
        pieces.make(directory, number, shards[number], *rest)
    except Exception as error:
        kind = next((kind for kind in _ERRORS if isinstance(error, _ERRORS[kind])), None)
        content = {"kind": kind, "text": str(error) if kind else traceback.format_exc()}
        write_atomically(failure, json.dumps(content))


@functools.lru_cache(maxsize=1)
def _work(file: Path) -> tuple[Mapping[int, Weighted], DataConfig, str]:
    return pickle.loads(file.read_bytes())
