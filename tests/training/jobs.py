"""Runs of train.py in processes of their own, and what they leave behind."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

from tests import tiny, xla

ROOT = pathlib.Path(__file__).parents[2]
# Dropout, so that the random key matters; saves and evaluations at different steps.
OVERRIDES = {
    "model__dropout": 0.1,
    "train__steps": 24,
    "checkpoint__every": 4,
    "eval__every": 6,
    "optimizer__warmup_steps": 4,
}


class Jobs:
    """Starts jobs of one configuration; compiled programs are shared through a cache on disk."""

    def __init__(self, directory: pathlib.Path, data_dir: str):
        self.directory = directory
        self.config = directory / "tiny_run.py"
        tiny.write_file(self.config, data__data_dir=data_dir, **OVERRIDES)
        self.env = os.environ | {
            "XLA_FLAGS": xla.flags(),
            "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def start(self, workdir: pathlib.Path, *arguments: str, signal_at: tuple[str, str, int] | None = None):
        """A running process; `signal_at` is (signal, kind, step) of interrupted.py."""
        program = ["train.py"]
        if signal_at:
            program = [str(pathlib.Path(__file__).with_name("interrupted.py")), *map(str, signal_at)]
        command = [sys.executable, *program, f"--config={self.config}", f"--workdir={workdir}", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=self.env, **pipes)

    def start_processes(
        self,
        workdir: pathlib.Path | str,
        *arguments: str,
        count: int,
        devices: int = 4,
        fault: tuple[str, int] | None = None,
        own: Sequence[str] = (),
        program: Sequence[str] = ("train.py",),
    ) -> list[subprocess.Popen]:
        """A job of `count` running processes, which share the devices.

        Args:
          fault: (KIND, STEP) of faulty.py for the last process.
          own: arguments that it alone is given.
          program: what all others run, or all, without a fault.
        """
        env = self.env | {
            "XLA_FLAGS": xla.flags(devices // count),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
            "JAX_NUM_PROCESSES": str(count),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        common = [f"--config={self.config}", f"--workdir={workdir}", *arguments]
        commands = [[*program, *common] for _ in range(count)]
        commands[-1] += own
        if fault:
            commands[-1] = [str(pathlib.Path(__file__).with_name("faulty.py")), *map(str, fault), *common]
        return [
            subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env | {"JAX_PROCESS_ID": str(index)}, **pipes)
            for index, command in enumerate(commands)
        ]

    def run_processes(
        self, workdir: pathlib.Path | str, *arguments: str, expect: int | None = 0, **kwargs
    ) -> list[str]:
        """Waits for all of a job's processes, checks their exit codes and returns what each wrote to stderr."""
        return finish(self.start_processes(workdir, *arguments, **kwargs), expect)

    def run(self, workdir: pathlib.Path, *arguments: str, expect: int = 0, **kwargs) -> str:
        """Waits for the end, checks the exit code and returns what was written to stderr."""
        process = self.start(workdir, *arguments, **kwargs)
        _, err = process.communicate(timeout=300)
        assert process.returncode == expect, (process.returncode, err[-3000:])
        return err


def finish(started: list[subprocess.Popen], expect: int | None, timeout: float = 300) -> list[str]:
    """What each process wrote to stderr; all must have exited with `expect`, or with any error if that is None."""
    try:
        said = [process.communicate(timeout=timeout)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, err in zip(started, said, strict=True):
        code = process.returncode
        assert code == expect if expect is not None else code != 0, (code, err[-3000:])
    return said


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def lines(workdir: pathlib.Path, kind: str) -> list[dict]:
    """Whole lines of metrics.jsonl of one kind."""
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return []
    whole = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in whole if line["kind"] == kind]


def hex_losses(workdir: pathlib.Path) -> list[tuple[int, str, str]]:
    """(step, loss, gradient norm) of every step, bit for bit."""
    return [(x["step"], x["loss"].hex(), x["grad_norm"].hex()) for x in lines(workdir, "train")]


def hex_held_out(workdir: pathlib.Path) -> list[tuple[int, str]]:
    return [(x["step"], x["loss"].hex()) for x in lines(workdir, "eval")]


def saved_steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())
