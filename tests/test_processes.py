"""Processes of one job make the same batches, and agree; one process needs nothing."""

import os
import subprocess
import sys

import pytest

from anchorjax import processes
from tests import xla
from tests.training.jobs import ROOT, free_port

WORKER = r"""
import pathlib, re, signal, sys
from anchorjax import launch, processes
launch.start()
import jax
import numpy as np
from anchorjax import sharding
from anchorjax.errors import PeerError, UsageError
from anchorjax.types import Batch

count, number = map(int, sys.argv[1:])
assert (processes.count(), jax.device_count()) == (count, 4)
assert processes.is_main() == (number == 0)
status = pathlib.Path("/proc/self/status")  # of Linux
if status.exists():
    caught = int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16)
    assert not caught & 1 << signal.SIGTERM - 1, "SIGTERM would not end this process"
assert processes.gather("x" * number) == ["x" * n for n in range(count)]
assert processes.anywhere(number == 1) and not processes.anywhere(False)

# The same batch for any mesh, byte for byte, from the rows that each process's devices hold.
host = np.arange(8 * 16, dtype=np.int32).reshape(8, 16)
for shape in [(4, 1, 1, 1), (1, 4, 1, 1), (1, 1, 4, 1), (2, 1, 2, 1), (1, 2, 1, 2), (1, 1, 2, 2), (1, 1, 1, 4)]:
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape)))
    rows = sharding.rows_here(mesh, len(host))
    batch = sharding.shard_batch(Batch(*[host[rows]] * 7), mesh, len(host))
    assert batch.tokens_BT.shape == host.shape, shape
    np.testing.assert_array_equal(processes.to_host(batch.tokens_BT), host)
assert not batch.tokens_BT.is_fully_addressable

with jax.set_mesh(mesh):
    signals = processes.Signals()
    own = "SIGTERM" if number == 1 else None
    assert [signals.agreed(None), signals.agreed(own), signals.agreed(None)] == [None, None, "SIGTERM"]

def fail():
    if number == 1:
        raise UsageError("a fault")

try:
    processes.together(fail)
except (UsageError, PeerError) as error:
    told = str(error), error.exit_code
assert told == ("a fault" if number == 1 else "process 1 failed: a fault", 2)
calls = []
processes.on_main(lambda: calls.append(number))
assert processes.main_first(lambda: number) == number
assert calls == ([0] if number == 0 else []) and processes.value_of_main(lambda: number) == 0
try:
    processes.same({"what they have": str(number == 0)})
except UsageError as error:
    assert str(error) == "the job's processes differ in what they have: 0 has True, 1 has False"
    print("agreed")
"""


def test_one_process_agrees_with_itself():
    signals = processes.Signals()
    assert processes.is_main() and signals.agreed("SIGTERM") == "SIGTERM" and signals.agreed(None) is None


def by_variables(count: int, index: int, port: int) -> dict[str, str]:
    address = f"127.0.0.1:{port}"
    return {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}


def by_srun(count: int, index: int, port: int) -> dict[str, str]:
    """What srun sets for a task on a machine with all others."""
    step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": str(count)}
    task = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": str(count), "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
    return step | task | {"JAX_COORDINATOR_PORT": str(port)}


@pytest.mark.parametrize(("told", "count"), [(by_srun, 2), (by_variables, 4)])
def test_processes_find_each_other_and_agree(told, count):
    env, port = os.environ | {"XLA_FLAGS": xla.flags(4 // count), "PYTHONPATH": str(ROOT)}, free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(count), str(index)],
            env=env | told(count, index, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    for process in started:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out.splitlines()[-1:]) == (0, ["agreed"]), err[-2000:]
