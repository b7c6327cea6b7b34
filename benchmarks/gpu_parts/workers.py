"""Processes that measure when they are asked to: requests and replies are lines of JSON.

JAX and PyTorch would hold each other's memory in one process, and one's crash would end the other: each gets a process
of its own, and whoever asks them in turn decides what runs when. A worker that is not asked leaves the GPU alone.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.part import Unavailable, told

ROOT = Path(__file__).resolve().parents[2]
LEAST_S, MOST_CALLS = 0.05, 50  # of one timing: calls follow each other without waiting, so that launching is hidden


class Failed(Exception):
    """The request failed, or the worker died of it."""


class Worker:
    """A process that runs `serve`; it dies with this one, whose process group it is in."""

    def __init__(self, module: str, *arguments: str):
        command = [sys.executable, "-m", module, *arguments]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        self._replies: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.dead = ""  # or why it is

    def _listen(self) -> None:
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put(None)

    def ask(self, timeout_s: float = 600.0, **request: Any) -> Any:
        """What `serve`'s function returns.

        Raises:
          Unavailable: as raised there.
          Failed: it raised something else, died, or did not answer in time and was killed.
        """
        if self.dead:
            raise Failed(self.dead)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            self.dead = f"no answer within {timeout_s:.0f} s; the process was ended"
            raise Failed(self.dead) from None
        except BrokenPipeError:
            line = None
        if line is None:
            self.close()
            self.dead = f"the process died (exit code {self._process.returncode}); log.txt has its last words"
            raise Failed(self.dead)
        reply = json.loads(line)
        if "unavailable" in reply:
            raise Unavailable(reply["unavailable"])
        if "failed" in reply:
            raise Failed(reply["failed"])
        return reply["result"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(answer: Callable[..., Any]) -> None:
    """Answers requests until there are no more. Whatever else is printed goes to the log."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = {"result": answer(**json.loads(line))}
        except Unavailable as error:
            reply = {"unavailable": str(error)}
        except Exception as error:
            print(told(error), file=sys.stderr, flush=True)
            reply = {"failed": told(error)}
        print(json.dumps(reply), file=replies, flush=True)


def seconds(call: Callable[[], Any], wait: Callable[[Any], Any], calls: int) -> float:
    """Seconds of one call among so many that are made without waiting in between."""
    started = time.perf_counter()
    for _ in range(calls):
        out = call()
    wait(out)
    return (time.perf_counter() - started) / calls


def enough_calls(one_s: float) -> int:
    return max(1, min(MOST_CALLS, round(LEAST_S / max(one_s, 1e-6))))


def in_parallel(tasks: Mapping[Any, Callable[[], Any]]) -> dict[Any, Any]:
    """What each task returns, or the exception that it raised."""
    results: dict[Any, Any] = {}

    def run(key, task):
        try:
            results[key] = task()
        except Exception as error:
            results[key] = error

    threads = [threading.Thread(target=run, args=item) for item in tasks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {key: results[key] for key in tasks}
