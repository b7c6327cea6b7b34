"""A run's directory: one configuration, one running job.

config.json     the resolved configuration         metrics.jsonl   one line per logged step or evaluation
checkpoints/    see checkpoints/orbax.py           tensorboard/    the same figures as events
commands.json   what was typed to train it         run.lock        held while a job runs here
summary.json    written at the end
"""

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchorjax import processes
from anchorjax.checkpoints.pretrained import SOURCE
from anchorjax.config import KEYS, Config, upgraded
from anchorjax.errors import WorkdirError
from anchorjax.files import read_json, write_atomically
from anchorjax.parsing import is_address
from anchorjax.training.bucket import LOCK, Bucket
from anchorjax.training.optimizer import steps_of_any_length

COMMANDS = "commands.json"
SHARED_S = 5.0  # in which all processes must see what process 0 wrote: network file systems remember what was not there


class Workdir:
    """Use as a context manager: the lock is held inside.

    Attributes:
      path: the folder with all files but checkpoints.
      root: the directory with the checkpoints: the same folder, or one in an object store (`Bucket`).
      name: what was typed, for messages.
    """

    def __init__(self, path: str | Path):
        """Raises WorkdirError if `path` is the address of an object store, and cannot be read."""
        self._bucket = Bucket(path) if is_address(str(path)) else None
        self.path = self._bucket.files if self._bucket else Path(path).expanduser()  # a shell leaves the ~ alone
        self.root = self._bucket.path if self._bucket else self.path
        self.name = str(path) if self._bucket else str(self.path)
        self._lock = None

    def open(self, config: Config) -> "Workdir":
        """Takes the directory for this configuration if there is one; writes nothing but the lock.

        A run that has trained keeps its configuration. Without a checkpoint and a line of metrics.jsonl there is
        nothing to keep, so that a start which failed may be corrected in the same directory.

        Raises:
          WorkdirError: it holds a run of another configuration (the differences are listed), another
            process is running in it, or the path is not a directory or cannot be locked.
        """
        self._config = config
        if self.path.exists():  # else `begin` makes it, and a start that fails before leaves nothing
            self._take()
        return self

    def _take(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / LOCK, "a+")  # noqa: SIM115 - held until close
            if self._bucket:
                self._bucket.take()
        except OSError as error:
            raise WorkdirError(f"--workdir={self.name} cannot be used: {error.strerror}") from error
        try:
            self._take_lock()
            self._refuse_other_config(self._config)
            self._lock.truncate(0)
            self._lock.write(f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}\n")
            self._lock.flush()
            os.fsync(self._lock.fileno())  # or a network file system may keep it from the other hosts
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            fault = f"another process is training in {self.name}; give this run its own --workdir"
            raise WorkdirError(fault) from error
        except OSError as error:
            fault = f"--workdir={self.name} cannot be used: its file system refuses to lock run.lock ({error.strerror})"
            raise WorkdirError(fault) from error

    def begin(self, command: str = "") -> "Workdir":
        """Writes what tells of the run: its configuration, and `command` if it is another one than before.

        A finished run's files are left as they are, unless its `train.steps` grow: it is unfinished again, and its
        summary.json goes. Raises WorkdirError as `open` does, if the directory was not there then.
        """
        if not self._lock:
            self._take()
        summary, steps = self.read_json("summary.json"), self._config.train.steps
        is_finished = summary is not None and summary.get("step", steps) >= steps
        if not is_finished:
            self.write_json("config.json", self._config.to_dict())
            self._keep_command(command)
            (self.path / "summary.json").unlink(missing_ok=True)  # after config.json, which tells that it is too short
        if self._bucket:
            self._bucket.start()
        return self

    def sync(self) -> None:
        """Brings an object store up to date. Raises WorkdirError if it cannot be, or another job has taken it over."""
        if self._bucket:
            processes.on_main(self._bucket.push)

    def mark(self) -> str:
        """What the job's process 0 wrote into run.lock, as this process sees it; "" if there is none."""
        if self._bucket:
            return self._bucket.owner()
        lock = self.path / LOCK
        return lock.read_text() if lock.exists() else ""

    def check_mark(self, mark: str) -> None:
        """Raises WorkdirError if this process sees another directory than process 0, whose `mark` it is."""
        until = time.monotonic() + SHARED_S
        while self.mark() != mark and time.monotonic() < until:
            time.sleep(0.2)
        if self.mark() != mark:
            raise WorkdirError(
                f"--workdir={self.name} is another directory here than for the job's process 0; it must lie on a file "
                "system that all processes share"
            )

    def _has_trained(self) -> bool:
        metrics = self.path / "metrics.jsonl"
        return (metrics.exists() and metrics.stat().st_size > 0) or bool(self._saved())

    def _saved(self) -> list[str]:
        """The names in checkpoints/."""
        checkpoints = self.root / "checkpoints"
        return [entry.name for entry in checkpoints.iterdir()] if checkpoints.exists() else []

    def _keep_command(self, command: str) -> None:
        commands = load_commands(self.path) if self._has_trained() else []  # those that failed trained nothing
        if command and command not in commands:
            self.write_json(COMMANDS, {"train": [*commands, command]})

    def _refuse_other_config(self, config: Config) -> None:
        fields = self.read_json("config.json")
        if fields is None:
            return
        found = differences(upgraded(fields), config.to_dict())
        # source/ is a copy of what init_from and data.tokenizer name; a file without the section is no run's.
        is_bound = (self.path / SOURCE).exists() and found.keys() & {"init_from", "data.tokenizer"}
        if not self._has_trained() and "train" in fields and not is_bound:
            return
        grown = {name: pair for name, pair in found.items() if _has_grown(name, *pair)}
        changed = {name: pair for name, pair in found.items() if name not in grown and not _is_free(name)}
        if changed:
            lines = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items())
            raise WorkdirError(
                f"{self.name} holds a run of another configuration ({lines}); "
                "go back to its values or give this run its own --workdir"
            )
        for name, (old, new) in grown.items():
            self._refuse_growth(config, name, old, new)

    def _refuse_growth(self, config: Config, name: str, old: int, new: int) -> None:
        """Raises WorkdirError if steps that are done would have had another learning rate in a longer run."""
        done = max((int(step) for step in self._saved() if step.isdecimal()), default=0)
        same = steps_of_any_length(config.optimizer, old)
        if done > same:
            source = "PATH_OF_A_COPY" if self._bucket else self.name  # init_from takes paths alone
            raise WorkdirError(
                f"{self.name} cannot go from {name}={old} to {new}: it is at step {done}, and from step {int(same)} on "
                f"optimizer.schedule={config.optimizer.schedule!r} made the learning rate depend on {name}. To train "
                f"on from its weights, give --config.init_from={source} and a new --workdir"
            )

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Replaces the file, whole."""
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What `write_json` wrote, or None. Raises WorkdirError if it is no longer that."""
        return read_json(self.path / name, WorkdirError)

    def close(self) -> None:
        if self._lock:
            self._lock.close()
        if self._bucket:
            self._bucket.close()

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _is_free(name: str) -> bool:
    return name in KEYS and KEYS[name].resume == "free"


def _has_grown(name: str, old: Any, new: Any) -> bool:
    return name in KEYS and KEYS[name].resume == "grow" and type(old) is int and new > old


def load_commands(workdir: Path) -> list[str]:
    """What was typed to train the run, in turn; none if neither train.py nor `anchorjax train` made it."""
    commands = (read_json(workdir / COMMANDS, WorkdirError) or {}).get("train", [])
    if not isinstance(commands, list) or not all(isinstance(command, str) for command in commands):
        raise WorkdirError(f"{workdir / COMMANDS} cannot be read: its commands are no texts")
    return commands


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The old and the new value of every leaf that differs, in the order of keys."""
    found = {}
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found[prefix + key] = (before, after)
    return found
