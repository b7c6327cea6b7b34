"""Processes of one job find each other, agree, and see whole arrays; one process needs nothing."""

import os
import socket
import subprocess
import sys

import pytest

from anchorjax.errors import UsageError
from anchorjax.training import processes
from tests import xla
from tests.training.jobs import ROOT

JOB = {"JAX_COORDINATOR_ADDRESS": "localhost:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
STEP = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "a,b", "SLURM_PROCID": "0"}  # as srun sets them
WORKER = """
import os, sys
from anchorjax.training import processes
processes.start()
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
assert (processes.count(), jax.device_count()) == (2, 4)
assert processes.is_main() == (os.environ["JAX_PROCESS_ID"] == "0")
mesh = jax.make_mesh((4,), ("data",))
host = np.arange(8.0).reshape(4, 2)
x = jax.make_array_from_callback((4, 2), NamedSharding(mesh, PartitionSpec("data")), lambda index: host[index])
assert not x.is_fully_addressable
np.testing.assert_array_equal(processes.to_host(x), host)
assert processes.agree(None) is None
assert processes.agree("SIGTERM" if jax.process_index() == 1 else None) == "SIGTERM"
print("agreed")
"""


def test_the_environment_names_the_job():
    assert processes.find(JOB) == processes.Job("localhost:1234", 2, 1)
    assert processes.find({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "is set without JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2 is not allowed: it must be from 0 to 1"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID=-1 is not allowed"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES=0 is not allowed: it must be a number from 1 on"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two is not allowed"),
        (
            {"JAX_COORDINATOR_ADDRESS": "localhost"},
            "JAX_COORDINATOR_ADDRESS=localhost is not allowed",
        ),
    ],
)
def test_variables_that_name_no_job_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        processes.find(JOB | changes)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1"},  # typed inside an allocation, without srun
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        JOB | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
)
def test_one_process_joins_nothing(environ, monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", lambda **_: pytest.fail("it opened a port"))
    processes.start(environ)
    assert processes.is_main() and processes.agree("SIGTERM") == "SIGTERM" and processes.agree(None) is None


@pytest.mark.parametrize("environ", [STEP, {"OMPI_COMM_WORLD_SIZE": "16"}, {"TPU_WORKER_HOSTNAMES": "a,b"}])
def test_a_scheduler_s_processes_are_joined_by_jax(environ, monkeypatch):
    asked = {}
    monkeypatch.setattr("jax.distributed.initialize", lambda **how: asked.update(how))
    processes.start(environ)
    assert asked["initialization_timeout"] == processes.START_S and "coordinator_address" not in asked


def test_processes_that_do_not_meet_are_told_what_made_them_a_job(monkeypatch):
    def fail(**_):
        raise ValueError("no coordinator")

    monkeypatch.setattr("jax.distributed.initialize", fail)
    with pytest.raises(UsageError, match=r"did not come together, of which SLURM_NTASKS=2 tells: no coordinator"):
        processes.start(STEP)


def test_two_processes_find_each_other():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    job |= {"XLA_FLAGS": xla.flags(num_devices=2), "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=os.environ | job | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in started:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out.splitlines()[-1:]) == (0, ["agreed"]), err[-2000:]
