"""How a command starts: in one process, or in all processes of a job, which find each other first.

    found by                                        on
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES,     any machines: set all three on each process
    JAX_PROCESS_ID
    JAX's own detection of clusters                 Slurm, Open MPI, TPU pods, indexed jobs of Kubernetes

A process without others joins nothing and opens no port. JAX_NUM_PROCESSES=1 makes any process one of these. JAX is
imported when the command line is known to be right, so that an error in it is printed at once.
"""

import contextlib
import dataclasses
import importlib.util
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from anchorjax.errors import UsageError, UserError, first_line, run_program

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Variables by which JAX detects a cluster. It detects TPUs by their chips too.
SIGNS = (
    *("SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST"),
    *("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH", "MEGASCALE_NUM_SLICES"),
)
# Seconds that all processes have to join, that one may be silent before it counts as lost, and that all have to exit.
START_S, HEARTBEAT_S, SHUTDOWN_S = 300, 100, 60
_NAMES = {
    "SlurmCluster": "Slurm",
    "OmpiCluster": "Open MPI",
    "GkeTpuCluster": "the list of TPU hosts",
    "GceTpuCluster": "the TPU's metadata",
    "K8sCluster": "Kubernetes",
}
_ALONE = "or JAX_NUM_PROCESSES=1, for a process without others"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a process knows of its job.

    Attributes:
      coordinator: "host:port" where process 0 listens.
      count: the number of processes.
      index: the number of this process.
      found_by: where the job was found, for messages.
      device: the only device of its machine that this process uses; None: all.
      on_several_machines: whether its processes are on more than one machine.
    """

    coordinator: str
    count: int
    index: int
    found_by: str = ", ".join(VARIABLES)
    device: int | None = None
    on_several_machines: bool = True


def named(environ: Mapping[str, str]) -> Job | None:
    """The job that `VARIABLES` name, or None if none of them is set.

    Raises:
      UsageError: some are missing, or hold what no job can have.
    """
    given = {name: environ[name] for name in VARIABLES if environ.get(name)}
    missing = [name for name in VARIABLES if name not in given]
    if len(missing) == len(VARIABLES):
        return None
    if given == {"JAX_NUM_PROCESSES": "1"}:
        return Job("", 1, 0)
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


def detected() -> Job | None:
    """The job of several processes that JAX detects around this process; None if there is none.

    Raises:
      UsageError: a scheduler started several processes, and JAX cannot find the others.
    """
    if os.environ.get("SLURM_STEP_NUM_TASKS") == "1":  # an interactive step keeps the allocation's SLURM_NTASKS
        return None
    cluster = _cluster()
    if cluster is None:
        if told := _several(os.environ):
            raise UsageError(f"{told}; set {', '.join(VARIABLES)}, {_ALONE}")
        return None
    found_by = _NAMES.get(cluster.__name__, cluster.__name__)
    try:
        count = cluster.get_process_count()
        if count == 1:
            return None
        port = os.environ.get("JAX_COORDINATOR_PORT")
        address = cluster.get_coordinator_address(timeout_secs=START_S, override_coordinator_port=port)
        return Job(address, count, cluster.get_process_id(), found_by, *_on_this_machine(cluster, count))
    except Exception as error:  # whatever a scheduler's variables, Kubernetes or a metadata server lead to
        raise UsageError(
            f"{found_by} started this process, and the others cannot be found: {first_line(error)}; "
            f"set {', '.join(VARIABLES)}, {_ALONE}"
        ) from error


def _cluster() -> Any:
    """The class of JAX that describes the cluster around this process, or None.

    JAX makes them public through `jax.distributed.initialize` alone, which opens a port for a single process too.
    """
    from jax._src.clusters import ClusterEnv

    for cluster in ClusterEnv._cluster_types:
        is_pod_of_no_job = cluster.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in os.environ
        if cluster.opt_in_only_method or is_pod_of_no_job:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing package, which `_several` names
            try:
                is_here = cluster.is_env_present()
            except Exception as error:
                name = _NAMES.get(cluster.__name__, cluster.__name__)
                raise UsageError(
                    f"{name} cannot be asked for the job: {first_line(error)}; set {', '.join(VARIABLES)}, {_ALONE}"
                ) from error
        if is_here:
            return cluster
    return None


def _several(environ: Mapping[str, str]) -> str | None:
    """A sentence on the other processes that JAX does not detect, and why it does not; None if there are none."""
    if environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        size = environ["OMPI_COMM_WORLD_SIZE"]
        return f"Open MPI started {size} processes, and JAX finds those of Open MPI 4 and earlier alone"
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts:
        return f"the TPU has {hosts.count(',') + 1} hosts, and JAX finds no chips or no libtpu on this one"
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        return "this is a pod of an indexed job, and JAX needs the package kubernetes to find the others"
    return None


def _on_this_machine(cluster: Any, count: int) -> tuple[int | None, bool]:
    """(the one device that this process uses or None, whether the job is on several machines).

    JAX's own rule is one GPU for each process, also for a process that has its machine alone.
    """
    name = cluster.__name__
    if name == "SlurmCluster":
        machines = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        is_alone, is_spread = machines == count, machines > 1
    elif name == "OmpiCluster":
        here = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
        is_alone, is_spread = here == "1", here != str(count)
    else:
        return None, True
    takes_all = is_alone or bool(os.environ.get("JAX_LOCAL_DEVICE_IDS"))
    return None if takes_all else cluster.get_local_process_id(), is_spread


def start() -> bool:
    """Joins this process to its job; call it before any other use of JAX. Returns False if it has no others.

    Raises:
      UsageError: variables that contradict each other, or processes that did not come within `START_S`.
    """
    job = named(os.environ) or detected()
    if job is None or job.count == 1:
        return False
    import jax

    if jax.distributed.is_initialized():  # by an earlier command of this process
        return True

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _join(job)
    except (TimeoutError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"the job's {job.count} processes, found by {job.found_by}, did not come together at {job.coordinator}: "
            f"{first_line(error)}"
        ) from error
    # JAX catches the signal for its preemption service, which nothing here asks: no command but training would end.
    signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)
    return True


def _join(job: Job) -> None:
    """Calls `jax.distributed.initialize`; raises what it raises, and TimeoutError after `START_S`.

    At its own time-out JAX aborts the process with a stack trace, so this one comes first.
    """
    import jax

    failed: list[BaseException] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                coordinator_address=job.coordinator,
                num_processes=job.count,
                process_id=job.index,
                local_device_ids=None if job.device is None else [job.device],
                cluster_detection_method="deactivate",
                coordinator_bind_address=_listens_at(job),
                initialization_timeout=2 * START_S,
                heartbeat_timeout_seconds=HEARTBEAT_S,
                shutdown_timeout_seconds=SHUTDOWN_S,
            )
        except BaseException as error:  # raised below, in the main thread
            failed.append(error)

    joining = threading.Thread(target=initialize, daemon=True)
    joining.start()
    joining.join(START_S)
    if joining.is_alive():
        raise TimeoutError(f"not all of them came within {START_S} s")
    for error in failed:
        raise error


def _listens_at(job: Job) -> str:
    """Where process 0 listens: at the job's address alone; JAX's default is all addresses of the machine.

    Some machines know their own name as 127.0.1.1, where no other machine would find process 0: there it is all.
    """
    host, _, port = job.coordinator.rpartition(":")
    is_detected = job.found_by != Job.found_by
    if job.index or not (is_detected and job.on_several_machines):
        return job.coordinator
    with contextlib.suppress(OSError):
        if not host[0].isdigit() and all(info[4][0].startswith("127.") for info in socket.getaddrinfo(host, port)):
            print(f"{host} is a loopback address here: process 0 listens on all addresses", file=sys.stderr)
            return f"[::]:{port}"
    return job.coordinator


def run(
    program: str,
    parse: Callable[[], T],
    act: Callable[[T], int | None],
    *,
    command: str = "",
    harmless: tuple[int, ...] = (0,),
    stopped: str = "stopped",
) -> int:
    """Runs a command, in this process or in all of its job, and returns the exit code. Process 0 alone prints results.

    A command line that one process refuses ends all of them: the process prints its line before it joins the others,
    and they print which process failed, and why.

    Args:
      program: what was typed before the arguments.
      parse: reads the command line, without JAX.
      act: the command; takes what `parse` returned.
      command: what all processes must have in common of what was typed.
      harmless: exit codes that are no errors, and that all processes return together.
      stopped: what to say after Ctrl-C.
    """
    refused: list[Exception | SystemExit] = []

    def read() -> T:
        try:
            return parse()
        except (Exception, SystemExit) as error:
            refused.append(error)
            raise

    given: list[T] = []
    try:
        code = run_program(program, lambda: given.append(read()), stopped)
    except SystemExit as end:
        if not end.code or not _may_have_others():  # --help, or one process
            raise
        code = end.code
    except Exception:
        if not _may_have_others():
            raise
        traceback.print_exc()
        code = 1
    if code and not (refused and _may_have_others()):
        return code
    from anchorjax import processes

    def job() -> int:
        if start():
            processes.together(lambda: _raise(refused, code))
            processes.same({"the command": command, **processes.versions()})
        if refused:  # by a process that has no others, as is known only here
            return code
        with contextlib.ExitStack() as stack:
            if not processes.is_main():
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            return act(*given) or 0

    def silently() -> int:
        with contextlib.suppress(UserError):  # it has said what it has to say
            job()
        return code

    return processes.ended(silently if refused else lambda: run_program(program, job, stopped), harmless)


def _raise(refused: list[Exception | SystemExit], code: int) -> None:
    """Raises for the others what the command line was refused for."""
    for error in refused:
        fault = UsageError(getattr(error, "fault", None) or str(error) or type(error).__name__)
        fault.exit_code = code
        raise fault


def _may_have_others() -> bool:
    """Whether this process may be one of several, as far as can be told without JAX."""
    return any(os.environ.get(name) for name in (*VARIABLES, *SIGNS)) or bool(importlib.util.find_spec("libtpu"))
