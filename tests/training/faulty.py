"""`python faulty.py KIND STEP train.py-arguments...`: train.py that fails when it is about to take a step.

KIND is "raise" (an error of this process alone) or "sleep" (it is alive, and gets no further).
"""

import sys
import time

import train
from anchorjax.errors import TrainingError
from anchorjax.training import loop


def main() -> int:
    kind, step, *arguments = sys.argv[1:]
    shard_batch, taken = loop.shard_batch, []

    def shard_and_fail(*given):
        taken.append(given)
        if len(taken) == int(step):
            if kind == "raise":
                raise TrainingError("a fault of one process")
            time.sleep(600)
        return shard_batch(*given)

    loop.shard_batch = shard_and_fail
    sys.argv = ["train.py", *arguments]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
