"""`python faulty.py KIND STEP train.py-arguments...`: train.py that fails when it is about to take a step.

KIND is "raise" (an error of this process alone), "sleep" (it is alive, and gets no further), "sleep at start" (before
any step), "unreadable" (at any step: it cannot read the arrays of checkpoints) or "kill in save" (kill -9 during save
number STEP, when the writing of its arrays has begun).
"""

import os
import signal
import sys
import time

import train
from anchorjax import processes
from anchorjax.checkpoints import orbax
from anchorjax.errors import TrainingError
from anchorjax.training import loop


def unreadable(self, step: int, *_) -> None:
    def fail() -> None:
        raise OSError(f"the arrays of step {step} are not to be read here")

    processes.together(fail)


def kill_in_save(number: int) -> None:
    write, saves = orbax.ocp.PyTreeCheckpointHandler.async_save, []

    async def write_and_die(self, *given, **more):
        saves.append(given)
        under_way = await write(self, *given, **more)
        if len(saves) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return under_way

    orbax.ocp.PyTreeCheckpointHandler.async_save = write_and_die


def main() -> int:
    kind, step, *arguments = sys.argv[1:]
    shard_batch, taken = loop.shard_batch, []
    if kind == "unreadable":
        orbax.Checkpoints._leaves = unreadable
    if kind == "sleep at start":
        orbax.Checkpoints.restore_latest = lambda *_: time.sleep(600)
    if kind == "kill in save":
        kill_in_save(int(step))

    def shard_and_fail(*given):
        taken.append(given)
        if len(taken) == int(step) and kind == "raise":
            raise TrainingError("a fault of one process")
        if len(taken) == int(step) and kind == "sleep":
            time.sleep(600)
        return shard_batch(*given)

    loop.shard_batch = shard_and_fail
    sys.argv = ["train.py", *arguments]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
