"""The processes of one job: what they must do together, and how they end.

A TPU v5p-64 is 8 hosts and two GPU nodes are two processes; each runs the same command, and `launch.start` joins
them. Everything that differs with the number of processes is asked here, so that the rest of the code reads as for
one. Every function here does for a process without others what it does for process 0.

What one process alone can find out (a file that is not there, a signal, another version) is told to all before any of
them acts on it: a process that raises, or goes another way, while the others enter a collective leaves them waiting.
"""

import faulthandler
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

import anchorjax
from anchorjax.errors import PeerError, UsageError
from anchorjax.sharding import EACH_DEVICE

# Process 0 holds the coordinator, without which JAX ends the others: after an error it leaves so much later than they.
LAST_S = 2.0
# Limits of a `Watchdog` in commands without a key for them: seconds at one place, and bytes a second at which even a
# slow file system reads and writes weights.
STUCK_S, SLOWEST = 1800.0, 20e6

T = TypeVar("T")


def count() -> int:
    return jax.process_count()


def is_main() -> bool:
    """Whether this process writes the run's files and prints."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """The text of every process, in the order of their numbers; all must call it together."""
    if count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(own.size))
    padded = np.pad(own, (0, int(sizes.max()) - own.size))
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def anywhere(holds: bool) -> bool:
    """Whether it holds on any process; all must call it together."""
    return any(map(json.loads, gather(json.dumps(holds))))


def together(call: Callable[[], T]) -> T:
    """Calls it on every process. If it fails on any of them, it fails on all, and no process is left waiting.

    Raises:
      PeerError: it failed on another process, whose number and error are in the message.
      Exception: what this process's own call raised.
    """
    if count() == 1:
        return call()
    result, error = None, None
    try:
        result = call()
    except Exception as own:  # told to the others first, then raised
        error = own
    told = gather(json.dumps(error and [str(error) or type(error).__name__, getattr(error, "exit_code", 1)]))
    if error is not None:
        raise error
    for number, fault in enumerate(map(json.loads, told)):
        if fault is not None:
            raise PeerError(number, *fault)
    return result


def on_main(call: Callable[[], object]) -> None:
    """Calls it on process 0 alone; all wait for it, and fail if it fails. See `together`."""
    together(call if is_main() else lambda: None)


def main_first(call: Callable[[], T]) -> T:
    """Calls it on process 0, and then on the others: what the first call makes on disk, theirs find there."""
    made: list[T] = []
    on_main(lambda: made.append(call()))
    return together(lambda: made[0] if made else call())


def same(facts: Mapping[str, str]) -> None:
    """Makes sure that every process has the same facts, such as versions and fingerprints.

    Raises:
      UsageError: they differ; the first that does is named, with both values and their processes.
    """
    told = [json.loads(text) for text in gather(json.dumps(dict(facts)))]
    for name, value in told[0].items():
        for number, others in enumerate(told):
            if others.get(name) != value:
                raise UsageError(
                    f"the job's processes differ in {name}: 0 has {value}, {number} has {others.get(name)}"
                )


def versions() -> dict[str, str]:
    """What runs here, for `same`: processes of other code would not enter the same collectives."""
    code = hashlib.sha256()
    for file in sorted(Path(anchorjax.__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    own = f"{anchorjax.__version__} ({code.hexdigest()[:12]})"
    return {"the version of JAX": jax.__version__, "the code of anchorjax": own}


def value_of_main(call: Callable[[], T]) -> T:
    """What the call returns on process 0, on every process; JSON must hold it. All fail if it fails. See `together`."""
    value = together(lambda: call() if is_main() else None)
    if count() == 1:
        return value
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = multihost_utils.broadcast_one_to_all(np.int32(own.size))
    told = multihost_utils.broadcast_one_to_all(own if is_main() else np.zeros(size, np.uint8))
    return json.loads(told.tobytes())


def to_host(x: jax.Array) -> np.ndarray:
    """Returns the whole array on every process, even if no process holds all of it; all must call it together."""
    if getattr(x, "is_fully_addressable", True) or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


class Signals:
    """The signal that any process of the job received, the same on all of them.

    With several processes, a signal is answered one call after the first process gave it: devices compare the numbers
    behind the step that they work on, and no call waits for that step. To be used inside the run's mesh.
    """

    def __init__(self):
        self._asked: jax.Array | None = None

    def agreed(self, own: str | None) -> str | None:
        """Returns the name of the signal, the highest by number if there are several; None if there is none."""
        if count() == 1:
            return own
        asked, self._asked = self._asked, _highest(signal.Signals[own].value if own else 0)
        number = 0 if asked is None else int(asked)
        return signal.Signals(number).name if number else None


def _highest(number: int) -> jax.Array:
    """The highest number that any process gave, on its way."""
    mesh = jax.sharding.get_mesh()
    own = NamedSharding(mesh, EACH_DEVICE)
    return _max(jax.make_array_from_callback((mesh.size,), own, lambda index: np.full(1, number, np.int32)))


@jax.jit
def _max(x: jax.Array) -> jax.Array:
    return jnp.max(x)


class Watchdog:
    """Ends a process of several that stays too long at one place, with the stacks of all its threads on stderr.

    JAX notices a peer that is dead or stopped, within `launch.HEARTBEAT_S`. It does not notice one that is alive and
    stuck, and the others would wait for it in a collective for ever. The exit code is 1. One process alone waits for
    nobody and has no limit. To be used as a context; inside another one its own limit counts, and after it the other's
    time starts anew.
    """

    _inside: ClassVar[list["Watchdog"]] = []  # of which one can run: the last

    def __init__(self, seconds: float):
        """`seconds` are those between two calls of `step`; 0: no limit."""
        # Process 0 ends the others when it leaves: so that each prints its stacks, it leaves last.
        self._seconds = seconds + (LAST_S if is_main() else 0) if seconds and count() > 1 else 0

    @classmethod
    def of_weights(cls, tree: Any) -> "Watchdog":
        """For the time in which a tree of arrays, abstract or real, is read or written once."""
        return cls(STUCK_S + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / SLOWEST)

    def step(self) -> None:
        """Starts the time anew."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True)
        elif count() > 1:  # no limit, whatever is outside
            faulthandler.cancel_dump_traceback_later()

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items; the time starts anew before and after each."""
        self.step()
        for item in items:
            self.step()
            yield item
            self.step()

    def __enter__(self) -> "Watchdog":
        self._inside.append(self)
        self.step()
        return self

    def __exit__(self, *_) -> None:
        self._inside.pop()
        if self._inside:
            self._inside[-1].step()
        elif count() > 1:
            faulthandler.cancel_dump_traceback_later()


def ended(call: Callable[[], int], harmless: tuple[int, ...] = (0,)) -> int:
    """Calls it and returns its exit code; after an error in one of several processes, ends this one at once.

    A process that ends as usual waits `launch.SHUTDOWN_S` for the others, which may wait for it in a collective, and
    its exit code is lost.

    Args:
      harmless: exit codes that are no errors, and that all processes return together.
    """
    try:
        code = call()
    except BaseException:
        if not _in_job():
            raise
        traceback.print_exc()
        code = 1
    if code not in harmless and _in_job():
        sys.stdout.flush()
        sys.stderr.flush()
        if _is_coordinator():
            time.sleep(LAST_S)
        os._exit(code)
    return code


def _in_job() -> bool:
    """Whether `launch.start` joined this process to others. Asks no device, as that may be what fails."""
    return jax.distributed.is_initialized()


def _is_coordinator() -> bool:
    """`is_main` without a device, where JAX may fail to start them: it has no public name."""
    from jax._src.distributed import global_state

    return global_state.service is not None
