"""A worker that does what it is asked to, for better or worse (test_gpu.py)."""

import os
import sys
import time

from benchmarks.gpu_parts.part import Unavailable
from benchmarks.gpu_parts.workers import serve


def answer(do: str):
    print("what libraries print is no reply")
    if do == "die":
        os._exit(3)
    if do == "hang":
        time.sleep(600)
    if do == "raise":
        raise ValueError("a fault\nof two lines")
    if do == "miss":
        raise Unavailable("no such library")
    return os.getpid()


if __name__ == "__main__":
    serve(answer)
    sys.exit()
