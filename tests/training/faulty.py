"""`python faulty.py KIND STEP train.py-arguments...`: train.py that fails when it is about to take a step.

KIND is "raise" (an error of this process alone), "sleep" (it is alive, and gets no further) or "unreadable" (at any
step: it cannot read the arrays of checkpoints).
"""

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


def main() -> int:
    kind, step, *arguments = sys.argv[1:]
    shard_batch, taken = loop.shard_batch, []
    if kind == "unreadable":
        orbax.Checkpoints._leaves = unreadable

    def shard_and_fail(*given):
        taken.append(given)
        if len(taken) == int(step) and kind != "unreadable":
            if kind == "raise":
                raise TrainingError("a fault of one process")
            time.sleep(600)
        return shard_batch(*given)

    loop.shard_batch = shard_and_fail
    sys.argv = ["train.py", *arguments]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
