"""A run's directory in an object store, such as gs://BUCKET/RUN.

Orbax writes checkpoints there by itself. All other files of a run are small, and some are appended to, which an object
store cannot do: they lie in a local folder, and process 0 copies what has changed every `PUSH_S` seconds, before each
save and at the end. So metrics.jsonl there has the lines of all steps up to the newest checkpoint.

An object store has no locks. run.lock there names the job and counts its copies. A job that finds the name of another
waits to see whether its count still rises. If another job takes the directory over, the first ends at its next save.
"""

import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from anchorjax.checkpoints.pretrained import SOURCE
from anchorjax.errors import WorkdirError, first_line

PUSH_S = 30.0
LOCK = "run.lock"
CHECKPOINTS = "checkpoints"


class Bucket:
    """The directory at an address, and its local folder. Every process of a job makes one, and process 0 holds it.

    Attributes:
      path: the directory itself; checkpoints lie below it.
      files: the local folder with all other files.
    """

    def __init__(self, address: str):
        """Copies what is there. Raises WorkdirError if it cannot be read."""
        self.address, self._owner, self._beats = address, "", 0
        self.files = Path(tempfile.mkdtemp(prefix="anchorjax-"))
        self._pushed: dict[str, tuple[int, int]] = {}  # size and time of each file that the directory has
        self._busy, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        try:
            with self._faults("read"):
                self.path = epath.Path(address)
            self._fetch()
        except BaseException:
            shutil.rmtree(self.files, ignore_errors=True)
            raise

    @contextlib.contextmanager
    def _faults(self, done: str) -> Iterator[None]:
        """Turns what a library raises (a missing package, no permission, no network) into a WorkdirError."""
        try:
            yield
        except Exception as error:
            raise WorkdirError(f"--workdir={self.address} cannot be {done}: {first_line(error)}") from error

    def _fetch(self) -> None:
        """Makes the local folder hold what the directory holds. Raises WorkdirError if it cannot be read."""
        with self._faults("read"):
            skip = {CHECKPOINTS, LOCK} if self._has(CHECKPOINTS) else {CHECKPOINTS, LOCK, SOURCE}
            found = _files(self.path, "", skip)
            for file in self._pushed.keys() - set(found):
                (self.files / file).unlink(missing_ok=True)
            self._pushed = {}
            for file in found:
                target = self.files / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((self.path / file).read_bytes())
                self._pushed[file] = _state(target)

    def _has(self, name: str) -> bool:
        return (self.path / name).exists() and any((self.path / name).iterdir())

    def owner(self) -> str:
        """The job that holds the directory; "" if none does. Raises WorkdirError if that cannot be read."""
        return self._lock().rpartition(" ")[0]

    def _lock(self) -> str:
        lock = self.path / LOCK
        with self._faults("read"):
            return lock.read_text() if lock.exists() else ""

    def take(self) -> None:
        """Makes the directory this job's, on process 0.

        Raises:
          WorkdirError: another job is alive in it, which takes `2.5 * PUSH_S` to see; or it cannot be read or written.
        """
        found = self._lock()
        if found:
            wait = f"{self.address}/{LOCK} names a job that did not end: waiting to see whether it runs"
            print(wait, file=sys.stderr, flush=True)
            time.sleep(2.5 * PUSH_S)
            if self._lock() != found:
                fault = f"another process is training in {self.address}; give this run its own --workdir"
                raise WorkdirError(fault)
        self._owner = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
        with self._faults("written"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._beat()
        self._fetch()  # again: another job may have ended since the first copy

    def _beat(self) -> None:
        self._beats += 1
        (self.path / LOCK).write_text(f"{self._owner} {self._beats}")

    def start(self) -> None:
        """Copies what has changed, now and every `PUSH_S` seconds."""
        self.push()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._ended.wait(PUSH_S):
            with contextlib.suppress(WorkdirError):  # the next copy tries again; that before a save raises
                self.push()

    def push(self) -> None:
        """Copies the files that have changed.

        Raises:
          WorkdirError: the directory cannot be read or written, or another job has taken it over.
        """
        with self._busy:
            owner = self.owner()
            if owner != self._owner:
                other = owner or "and has ended"
                raise WorkdirError(f"another job has taken {self.address} over ({other}); this one ends")
            with self._faults("written"):
                self._copy()
                self._beat()

    def _copy(self) -> None:
        found = {
            str(file.relative_to(self.files)): _state(file)
            for file in sorted(self.files.rglob("*"))
            if file.is_file() and not file.name.endswith(".part") and file.name != LOCK
        }
        for name, state in found.items():
            if self._pushed.get(name) != state:
                target = self.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((self.files / name).read_bytes())
        for name in self._pushed.keys() - found.keys():
            (self.path / name).unlink(missing_ok=True)
        self._pushed = found

    def close(self) -> None:
        """Copies what is left and releases the directory.

        Raises:
          WorkdirError: as `push` does; the local folder stays.
        """
        if self._thread:
            self._ended.set()
            self._thread.join()
            try:
                self.push()
            except WorkdirError as error:
                raise WorkdirError(f"{error}; the newest files are in {self.files}") from error
        with contextlib.suppress(Exception):  # the next job finds the lock of one that does not run
            if self._owner and self.owner() == self._owner:
                (self.path / LOCK).write_text("")
        shutil.rmtree(self.files, ignore_errors=True)


def _files(path: epath.Path, prefix: str, skip: set[str]) -> list[str]:
    """Names of all files below, relative to where the first call began."""
    if not path.exists():
        return []
    found = []
    for entry in path.iterdir():
        if entry.name in skip:
            continue
        name = f"{prefix}{entry.name}"
        found += _files(entry, f"{name}/", set()) if entry.is_dir() else [name]
    return sorted(found)


def _state(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
