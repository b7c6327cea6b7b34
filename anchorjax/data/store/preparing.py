"""A store on disk from sources: shards -> pieces -> whole, restartable, the same for any runner and number of workers.

Beside the store STORE, the directory STORE.part holds what is not yet whole: `request.json`, which says for what it is,
`pieces-DIGEST/`, of which finished ones are not made again, and `whole/`, which is renamed to STORE at the very end.
The digest is the request's: a worker that still runs for another preparation writes elsewhere.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from anchorjax import background
from anchorjax.config import DataConfig
from anchorjax.data import sources
from anchorjax.data.sources import Weighted
from anchorjax.data.store import beam, joining, pieces, processes
from anchorjax.data.store.index import DTYPES, FORMAT, Index
from anchorjax.data.store.pieces import Report
from anchorjax.data.store.runner import PROCESSES, Runner
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.data.text.turns import ConversationEncoder
from anchorjax.errors import ConfigError, DataError
from anchorjax.files import write_atomically

# What must be the same for finished pieces to be used.
_REQUESTED = ("source", "text_key", "source_key", "held_out_share", "max_row_bytes")


@dataclasses.dataclass(frozen=True)
class State:
    """How far a preparation is."""

    done: int  # pieces
    total: int
    tokens: int


def prepare(
    config: DataConfig, show: Callable[[State], None] = lambda state: None, runner: Runner = PROCESSES
) -> dict[str, Index]:
    """Writes `config.store` and returns the index of each split; see anchorjax/config/data.py for its keys.

    Args:
      show: is called about once a second, from another thread.
      runner: what tokenizes the shards. It does not change the store, and may change between two starts.

    Raises:
      UsageError: a runner or a Beam option that is not known, or Beam is not installed.
      ConfigError: no such source or tokenizer; a store that exists already.
      PreparationError: a process was killed, or the runner failed.
      DataError: a file that cannot be read or written, a bad row that is not to be skipped, too many of those that
        are, no document in a split, another process that prepares the same store, or an unfinished preparation of
        something else.
    """
    if runner != PROCESSES:
        beam.check(runner, config)
    store = Path(config.store).expanduser().resolve()
    part = store.with_name(f"{store.name}.part")
    _check_store(config, store, part)
    try:
        tokenizer = tokenizer_lib.load(config.tokenizer)
    except ValueError as error:
        raise ConfigError("data.tokenizer", config.tokenizer, str(error)) from error
    template = _template(config, tokenizer)
    try:
        shards = _shards(config)
        with _locked(part):
            _check_store(config, store, part)  # again: another process may just have ended
            request = _request(config, tokenizer.name, shards) | template
            directory, whole = part / f"pieces-{_digest(request)}", part / "whole"
            _check_request(part / "request.json", request)
            directory.mkdir(exist_ok=True)
            with _shown(directory, len(shards), pieces.dtype_name(tokenizer, config), show):
                _write_pieces(directory, shards, config, tokenizer.name, runner)
            report = _report(directory, len(shards))
            _check_bad_rows(report, config)
            shutil.rmtree(whole, ignore_errors=True)
            indices = {}
            for split in pieces.SPLITS:
                _check_split(directory, len(shards), split, report, config)
                (whole / split).mkdir(parents=True)
                indices[split] = joining.join(directory, whole / split, split, tokenizer, config)
                _sync(whole / split)
            os.rename(whole, store)
            _sync(store.parent)
        # Behind the lock, whose open file NFS would keep in the directory. The store is whole: what stays, stays.
        shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{config.store} cannot be prepared: {error}") from error
    return indices


def _template(config: DataConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """Returns what decides the tokens of conversations. Raises ConfigError for a template that cannot be used."""
    if not config.messages_key:
        return {}
    try:
        source = ConversationEncoder.open(config.tokenizer, tokenizer).chat.source
    except ValueError as error:
        raise ConfigError("data.tokenizer", config.tokenizer, str(error)) from error
    return {"messages_key": config.messages_key, "chat_template": hashlib.sha256(source.encode()).hexdigest()}


def _check_store(config: DataConfig, store: Path, part: Path) -> None:
    if not config.store or store.exists():
        left_over = f"; {part} is left over and can be removed" if config.store and part.exists() else ""
        raise ConfigError("data.store", config.store, f"it must be a path that does not exist{left_over}")


def _shards(config: DataConfig) -> list[Weighted]:
    try:
        return sources.shards(config)
    except ValueError as error:
        raise ConfigError("data.source", config.source, str(error)) from error


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[None]:
    part.mkdir(parents=True, exist_ok=True)
    with open(part / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another process is preparing {part.with_suffix('')}") from error
        yield


def _request(config: DataConfig, tokenizer_name: str, shards: list[Weighted]) -> dict[str, object]:
    inputs = hashlib.sha256()
    for weighted in shards:
        inputs.update(f"{weighted.shard.name} {weighted.weight} {weighted.shard.split}\n".encode())
        for file in weighted.shard.files:
            stat = file.stat()
            inputs.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    request = {name: getattr(config, name) for name in _REQUESTED}
    return request | {"tokenizer": tokenizer_name, "inputs": inputs.hexdigest(), "format": FORMAT}


def _digest(request: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(request).encode()).hexdigest()[:16]


def _check_request(file: Path, request: dict[str, object]) -> None:
    """Writes the request. Raises DataError if there are documents of another one."""
    try:
        before = dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged: {error}; remove {file.parent} to begin again") from error
    except FileNotFoundError:
        before = {}
    differing = [name for name in request if before.get(name) != request[name]]
    if not differing:
        return
    old = file.parent / f"pieces-{_digest(before)}"
    if not pieces.has_documents(old):  # it failed at once, or all rows were bad
        shutil.rmtree(old, ignore_errors=True)
        write_atomically(file, json.dumps(request, indent=2) + "\n")
        return
    changed = "; ".join(f"{name}: {before.get(name)!r} -> {request[name]!r}" for name in differing)
    raise DataError(
        f"{file.parent} is an unfinished preparation of something else ({changed}); "
        "remove it or give another data.store"
    )


def _write_pieces(
    directory: Path, shards: list[Weighted], config: DataConfig, tokenizer_name: str, runner: Runner
) -> None:
    pieces.clear(directory)
    missing = {number: shard for number, shard in enumerate(shards) if pieces.done(directory, number) is None}
    if missing:
        write = processes.write if runner == PROCESSES else functools.partial(beam.write, runner=runner)
        write(directory, missing, config, tokenizer_name)


def _report(directory: Path, total: int) -> Report:
    report = Report()
    for number in range(total):
        report.add(Report.of(pieces.done(directory, number)))
    return report


def _check_bad_rows(report: Report, config: DataConfig) -> None:
    bad = sum(report.bad.values())
    reasons = "; ".join([describe(report.bad, report.places), *report.details.values()])
    if bad and config.bad_rows == "raise":  # an earlier start had skipped them
        raise DataError(f"{bad} of {report.rows} rows are bad: {reasons}")
    if bad > config.max_bad_share * report.rows:
        raise DataError(
            f"{bad} of {report.rows} rows are bad, more than data.max_bad_share={config.max_bad_share}: {reasons}"
        )


def _check_split(directory: Path, total: int, split: str, report: Report, config: DataConfig) -> None:
    """Raises DataError if a split has no document. It also removes the pieces, which are useless for another share."""
    heads = [pieces.done(directory, number) for number in range(total)]
    if any(head[split]["documents"] for head in heads):
        return
    for useless in (directory, directory.parent / "whole"):
        shutil.rmtree(useless, ignore_errors=True)
    documents = sum(head[other]["documents"] for head in heads for other in pieces.SPLITS)
    raise DataError(
        f"no document of {config.source!r} is in the {split} split, of {report.rows} rows; "
        f"{_advice(split, documents, report, config)}"
    )


def _advice(split: str, documents: int, report: Report, config: DataConfig) -> str:
    share = f"data.held_out_share={config.held_out_share}"
    if documents < 2:
        return f"a store needs two different documents, one of them held out, and here there are {documents}"
    if split == "train":
        return f"{share} held out all of {documents}: give a smaller one, or documents that differ"
    if report.least_draw == 1:
        return "the source has splits of its own, and this one is empty"
    needed = (math.floor(report.least_draw * 1000) + 1) / 1000
    if needed > 0.5:  # what the configuration allows
        return f"{share} held out none of {documents} documents, and no share up to 0.5 does: add documents"
    return f"{share} held out none of {documents} documents: data.held_out_share={needed:g} holds out at least one"


def describe(bad: dict[str, int], places: dict[str, list[str]]) -> str:
    """Returns one line about bad rows, the most frequent reasons first."""
    reasons = sorted(bad, key=lambda reason: (-bad[reason], reason))
    return "; ".join(f"{reason}: {bad[reason]:,} ({', '.join(places[reason])})" for reason in reasons)


@contextlib.contextmanager
def _shown(directory: Path, total: int, dtype: str, show: Callable[[State], None]) -> Iterator[None]:
    """Calls `show` every second with the progress of all processes, by the files' sizes."""
    width = np.dtype(DTYPES[dtype]).itemsize

    def show_state() -> None:
        finished, size = pieces.progress(directory)
        show(State(finished, total, size // width))

    try:
        with background.every(1, show_state):
            yield
    finally:
        show_state()


def _sync(directory: Path) -> None:
    """Syncs the names in a directory to disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
