"""A process finds its job as each cluster tells of it; one process joins nothing; a bad command line ends all."""

import os
import subprocess
import sys
import types

import pytest

from anchorjax import launch
from anchorjax.errors import DONE, UsageError
from tests.training.jobs import ROOT, free_port

JOB = {"JAX_COORDINATOR_ADDRESS": "localhost:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
# Two machines with two tasks each, as srun sets the variables of the last.
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_VERSION": "4.1.6",
}
GKE = {"TPU_WORKER_HOSTNAMES": "10.0.0.5,10.0.0.6", "TPU_WORKER_ID": "1"}
SLICES = GKE | {
    "MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.5:8080",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}


@pytest.fixture
def asked(monkeypatch):
    """What `jax.distributed.initialize` is called with; the environment tells of no cluster."""
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JAX_NUM", "JAX_CO", "JAX_PROC")):
            monkeypatch.delenv(name)
    found = {}
    monkeypatch.setattr("jax.distributed.initialize", lambda **how: found.update(how))
    return found


def in_environment(monkeypatch, environ: dict[str, str]) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def on_a_tpu(monkeypatch, metadata: dict[str, str] | None = None) -> None:
    """As on a machine with TPU chips, and with these attributes on Google's metadata server."""
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    found = {"tpu-env": "", **(metadata or {})}
    monkeypatch.setattr(
        cloud_tpu_cluster, "get_metadata", lambda key: (found.get(key, ""), 200 if key in found else 404)
    )


def in_kubernetes(monkeypatch, count: int, jobset: str = "") -> None:
    """As in a pod of an indexed job, with what JAX asks Kubernetes for."""
    from jax._src.clusters import k8s_cluster

    named = {"jobset.sigs.k8s.io/jobset-name": jobset} if jobset else {}
    metadata = types.SimpleNamespace(name="run", labels=named)
    job = types.SimpleNamespace(metadata=metadata, spec=types.SimpleNamespace(parallelism=count))
    pod = types.SimpleNamespace(spec=types.SimpleNamespace(subdomain="pods"))
    known = {
        "is_env_present": True,
        "_controller": types.SimpleNamespace(kind="Job"),
        "_job": job,
        "_pod": pod,
    }
    for name, value in known.items():
        monkeypatch.setattr(k8s_cluster.K8sCluster, name, classmethod(lambda _, value=value: value))
    monkeypatch.setattr(k8s_cluster.socket, "gethostbyname", lambda _: "10.0.0.9")
    in_environment(monkeypatch, {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"})


def assert_joined(asked, address: str, count: int, index: int, devices: list[int] | None) -> None:
    assert asked == {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "local_device_ids": devices,
        "cluster_detection_method": "deactivate",
        "coordinator_bind_address": address,
        "initialization_timeout": 600,  # twice that after which the process gives up by itself
        "heartbeat_timeout_seconds": 100,
        "shutdown_timeout_seconds": 60,
    }


@pytest.mark.parametrize(
    ("environ", "address", "count", "index", "devices"),
    [
        (JOB, "localhost:1234", 2, 1, None),
        (SLURM | JOB, "localhost:1234", 2, 1, None),  # what is set by hand goes first
        (SLURM, "node07:61441", 4, 3, [1]),
        (SLURM | {"JAX_COORDINATOR_PORT": "9999"}, "node07:9999", 4, 3, [1]),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, "node07:61441", 4, 3, None),  # which JAX reads itself
        # One task on each machine has all of its GPUs; JAX alone would give it the first.
        (SLURM | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, "node07:61441", 2, 1, None),
        (MPI, "10.96.0.1:62624", 2, 1, None),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, "10.96.0.1:62624", 2, 1, [1]),
    ],
)
def test_a_job_is_found_by_its_variables(asked, monkeypatch, environ, address, count, index, devices):
    in_environment(monkeypatch, environ)
    assert launch.start()
    assert_joined(asked, address, count, index, devices)


@pytest.mark.parametrize(
    ("environ", "address", "count", "index"),
    [(GKE, "10.0.0.5:8482", 2, 1), (SLICES, "10.0.0.5:8482", 4, 3)],
    ids=["one slice", "two slices"],
)
def test_a_tpu_pod_on_kubernetes_is_found(asked, monkeypatch, environ, address, count, index):
    on_a_tpu(monkeypatch)
    in_environment(monkeypatch, environ | {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"})
    assert launch.start()
    assert_joined(asked, address, count, index, None)


def test_a_tpu_pod_is_found_by_its_metadata_where_no_hosts_are_listed(asked, monkeypatch):
    ends = "worker-0:8470:10.0.0.5,worker-1:8470:10.0.0.6"
    on_a_tpu(monkeypatch, {"agent-worker-number": "1", "worker-network-endpoints": ends})
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    assert launch.start()
    assert_joined(asked, "10.0.0.5:8482", 2, 1, None)


@pytest.mark.parametrize(("jobset", "host"), [("", "run-0.pods"), ("set", "run-0.set")])
def test_an_indexed_job_of_kubernetes_is_found(asked, monkeypatch, jobset, host):
    in_kubernetes(monkeypatch, 2, jobset)
    assert launch.start()
    assert_joined(asked, f"{host}:55527", 2, 1, None)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # an interactive step in a larger allocation
        {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1"},  # typed inside an allocation, without srun
        MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a pod of no job
        JOB | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        SLURM | {"JAX_NUM_PROCESSES": "1"},
    ],
)
def test_one_process_joins_nothing(asked, monkeypatch, environ):
    in_environment(monkeypatch, environ)
    assert not launch.start() and not asked


def test_one_host_of_a_tpu_and_one_pod_join_nothing(asked, monkeypatch):
    on_a_tpu(monkeypatch, {"agent-worker-number": "0", "worker-network-endpoints": "10.0.0.5"})
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    assert not launch.start() and not asked
    monkeypatch.undo()
    monkeypatch.setattr("jax.distributed.initialize", lambda **_: pytest.fail("it opened a port"))
    in_kubernetes(monkeypatch, 1)
    assert not launch.start()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "is set without JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2 is not allowed: it must be from 0 to 1"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID=-1 is not allowed"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES=0 is not allowed: it must be a number from 1 on"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two is not allowed"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost"}, "JAX_COORDINATOR_ADDRESS=localhost is not allowed"),
    ],
)
def test_variables_that_name_no_job_are_refused(environ, message):
    with pytest.raises(UsageError, match=message):
        launch.named(JOB | environ)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "the TPU has 2 hosts, and JAX finds no chips or no libtpu on this one"),
        ({"OMPI_COMM_WORLD_SIZE": "16"}, "Open MPI started 16 processes"),
        ({"KUBERNETES_SERVICE_HOST": "a", "JOB_COMPLETION_INDEX": "0"}, "JAX needs the package kubernetes"),
        (SLURM | {"SLURM_PROCID": "x"}, "Slurm started this process, and the others cannot be found"),
    ],
)
def test_several_processes_that_jax_cannot_find_do_not_train_apart(asked, monkeypatch, environ, message):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    in_environment(monkeypatch, environ)
    with pytest.raises(UsageError, match=message):
        launch.start()
    assert not asked


def test_processes_that_do_not_meet_are_told_what_made_them_a_job(asked, monkeypatch):
    def fail(**_):
        raise ValueError("no coordinator")

    monkeypatch.setattr("jax.distributed.initialize", fail)
    in_environment(monkeypatch, SLURM)
    fault = r"the job's 4 processes, found by Slurm, did not come together at node07:61441: no coordinator"
    with pytest.raises(UsageError, match=fault):
        launch.start()


ALONE = """
import sys
from anchorjax import launch
launch.START_S = 1
sys.exit(launch.run("anchorjax train", lambda: None, lambda _: sys.exit("it ran")))
"""


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_waits_for_the_others_in_vain_ends_in_one_line(index):
    """JAX itself would abort it with a stack trace."""
    address = f"127.0.0.1:{free_port()}"
    environ = os.environ | JOB | {"JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(index)}
    command, pipes = [sys.executable, "-c", ALONE], {"capture_output": True, "text": True}
    done = subprocess.run(command, env=environ, cwd=ROOT, timeout=60, **pipes)
    fault = f"did not come together at {address}: not all of them came within 1 s"
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith(fault), done.stderr
    assert done.stderr.count("anchorjax train: ") == 1 and "Traceback" not in done.stderr


def test_a_machine_that_knows_itself_by_a_loopback_address_is_reached_from_others(asked, monkeypatch, capsys):
    first = SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    in_environment(monkeypatch, first)
    monkeypatch.setattr(launch.socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", ("127.0.1.1", 61441))])
    launch.start()
    assert asked["coordinator_bind_address"] == "[::]:61441" and "listens on all addresses" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")  # nobody asks from elsewhere
    launch.start()
    assert asked["coordinator_bind_address"] == "node07:61441"


def test_a_typing_error_of_one_process_needs_no_jax(asked, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax", None)  # as it would fail to be imported

    def parse():
        raise UsageError("no such key")

    assert launch.run("anchorjax train", parse, lambda _: DONE) == 2
    assert capsys.readouterr().err == "anchorjax train: no such key\n"


def test_a_typing_error_where_there_might_be_others_is_one_line_too(asked, monkeypatch, capsys):
    in_environment(monkeypatch, SLURM | {"SLURM_STEP_NUM_TASKS": "1"})

    def parse():
        raise UsageError("no such key")

    assert launch.run("anchorjax train", parse, lambda _: pytest.fail("it ran")) == 2
    assert capsys.readouterr().err == "anchorjax train: no such key\n" and not asked
