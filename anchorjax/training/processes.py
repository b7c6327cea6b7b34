"""The processes of one job: how they find each other, and what they must do together.

A TPU v5p-64 is 16 hosts and two GPU nodes are two processes; each runs the same command. Everything that differs with
the number of processes is asked here, so that the rest of the trainer reads as for one. One process opens no port.

    found by                                              on
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES,           any machines: set all three on each process
    JAX_PROCESS_ID
    JAX itself, once COUNTS or HOSTS tell of several      Slurm, Open MPI, TPU pods on Kubernetes
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from anchorjax.errors import UsageError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Where schedulers say how many processes a job has, and TPU pods which hosts; JAX finds the rest by itself.
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
SLURM_STEP = ("SLURM_STEP_NODELIST", "SLURM_PROCID")  # what srun adds for the processes that it starts
HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
# Seconds until every process must have joined, until a silent process ends the job, and for the shutdown together.
START_S, HEARTBEAT_S, SHUTDOWN_S = 300, 100, 60


@dataclasses.dataclass(frozen=True)
class Job:
    """Where process 0 listens ("host:port"), how many processes there are, and which of them this one is."""

    coordinator: str
    count: int
    index: int


def find(environ: Mapping[str, str]) -> Job | None:
    """The job that `VARIABLES` name, or None if none of them is set.

    Raises:
      UsageError: some are missing, or hold what no job can have.
    """
    given = {name: environ[name] for name in VARIABLES if environ.get(name)}
    missing = [name for name in VARIABLES if name not in given]
    if len(missing) == len(VARIABLES):
        return None
    if missing:
        raise UsageError(
            f"{', '.join(given)} is set without {' and '.join(missing)}: a job of processes needs all three"
        )
    address, count, index = (given[name] for name in VARIABLES)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"JAX_COORDINATOR_ADDRESS={address} is not allowed: it must be host:port")
    if not count.isdecimal() or int(count) < 1:
        raise UsageError(f"JAX_NUM_PROCESSES={count} is not allowed: it must be a number from 1 on")
    if not index.isdecimal() or int(index) >= int(count):
        raise UsageError(f"JAX_PROCESS_ID={index} is not allowed: it must be from 0 to {int(count) - 1}")
    return Job(address, int(count), int(index))


def start(environ: Mapping[str, str] = os.environ) -> None:
    """Joins this process to its job; call it before any other use of JAX. Alone, it does nothing.

    Raises:
      UsageError: variables that contradict each other, or processes that did not come within `START_S`.
    """
    job = find(environ)
    if job and job.count == 1:
        return
    how: dict[str, Any] = {}
    if job:
        # By default the coordinator would listen on all of the machine's addresses.
        how = {
            "coordinator_address": job.coordinator,
            "num_processes": job.count,
            "process_id": job.index,
            "cluster_detection_method": "deactivate",
            "coordinator_bind_address": job.coordinator,
        }
    elif not (told_by := _detected(environ)):
        return
    limits = {
        "initialization_timeout": START_S,
        "heartbeat_timeout_seconds": HEARTBEAT_S,
        "shutdown_timeout_seconds": SHUTDOWN_S,
    }
    try:
        jax.distributed.initialize(**how, **limits)
    except (RuntimeError, ValueError) as error:
        where = f" at {job.coordinator}" if job else f", of which {told_by}={environ[told_by]} tells"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the job's processes did not come together{where}: {reason}") from error


def _detected(environ: Mapping[str, str]) -> str | None:
    """The variable that says that a scheduler started several processes, this one among them; None if none does."""
    for name in COUNTS:
        count = environ.get(name, "")
        # A command typed inside an allocation has its SLURM_NTASKS, and is one process: srun did not start it.
        is_started = not name.startswith("SLURM") or all(each in environ for each in SLURM_STEP)
        if count.isdecimal() and int(count) > 1 and is_started:
            return name
    return next((name for name in HOSTS if "," in environ.get(name, "")), None)


def count() -> int:
    return jax.process_count()


def is_main() -> bool:
    """Whether this process writes the run's files and prints."""
    return jax.process_index() == 0


def agree(signal: str | None) -> str | None:
    """Returns the signal that any process received, the same on all; None if none did.

    Every process must call it in the same step, as it waits for the others.
    """
    if count() == 1:
        return signal
    own = np.zeros(32, np.uint8)
    text = (signal or "").encode()[: own.size]
    own[: len(text)] = np.frombuffer(text, np.uint8)
    told = (bytes(row).rstrip(b"\0").decode() for row in multihost_utils.process_allgather(own))
    return next(filter(None, told), None)


def to_host(x: jax.Array) -> np.ndarray:
    """Returns the whole array on every process, even if no process holds all of it; all must call it together."""
    if getattr(x, "is_fully_addressable", True):
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
