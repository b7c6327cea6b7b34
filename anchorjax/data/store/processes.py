"""Pieces by processes of this machine: the way that needs nothing more than the framework."""

import concurrent.futures.process
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

from anchorjax.config import DataConfig
from anchorjax.data.sources import Weighted
from anchorjax.data.store import pieces
from anchorjax.errors import PreparationError

KILLED = "a process was killed (was the memory full?); run the same command to resume"


def write(directory: Path, missing: Mapping[int, Weighted], config: DataConfig, tokenizer_name: str) -> None:
    """Writes the pieces of the missing shards, by number, with `data.workers` processes.

    Raises:
      DataError: what `pieces.make` raises.
      PreparationError: a process was killed.
    """
    if config.workers < 2 or len(missing) < 2:
        for number, shard in missing.items():
            pieces.make(directory, number, shard, config, tokenizer_name)
        return
    threads = max(1, (os.cpu_count() or 1) // config.workers)
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    # Its end tells workers to end, whether this process closes it or is killed. (An Event may wait for ever for a
    # killed worker.)
    lifeline, end = spawn.Pipe(duplex=False)
    executor = concurrent.futures.ProcessPoolExecutor(
        min(config.workers, len(missing)),
        mp_context=spawn,
        initializer=_start_worker,
        initargs=(threads, lifeline),
    )
    with lifeline, end, executor:
        make = functools.partial(executor.submit, pieces.make, directory)
        futures = [make(number, shard, config, tokenizer_name) for number, shard in missing.items()]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException as error:
            end.close()  # at once: finished pieces are kept
            if not isinstance(error, concurrent.futures.process.BrokenProcessPool):
                raise
            raise PreparationError(KILLED) from error


def _start_worker(threads: int, lifeline: multiprocessing.connection.Connection) -> None:
    """Runs first in a worker."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the tokenizers library, which else takes all cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to all; the parent answers it
    threading.Thread(target=lambda: (lifeline.poll(None), os._exit(1)), daemon=True).start()
