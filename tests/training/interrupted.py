"""`python interrupted.py SIGNAL KIND STEP train.py-arguments...`: train.py that signals itself at one place.

KIND is "train" or "eval": the signal comes when that line of that step has been written to metrics.jsonl.
A real signal at a chosen place, where a timer would hit another one on every machine.
"""

import os
import signal
import sys

import train
from anchorjax.training import metrics


def main() -> int:
    name, kind, step, *arguments = sys.argv[1:]
    write = metrics.Writer.write

    def write_and_signal(self, at_step, at_kind, values):
        write(self, at_step, at_kind, values)
        if (at_kind, at_step) == (kind, int(step)):
            os.kill(os.getpid(), signal.Signals[name])

    metrics.Writer.write = write_and_signal
    sys.argv = ["train.py", *arguments]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
