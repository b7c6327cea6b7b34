"""Checks the cases of the part `contract`, one at a time, while the next ones are compiled in other threads."""

import argparse
import contextlib
import os
from concurrent.futures import Future, ThreadPoolExecutor

from anchorjax.attention import pallas_gpu
from benchmarks.gpu_parts.contract_cases import cases
from benchmarks.gpu_parts.workers import serve

THREADS = max(2, (os.cpu_count() or 2) // 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    todo = cases(arguments.dry_run)
    kernels = pallas_gpu.interpreted if arguments.dry_run else contextlib.nullcontext

    def compile_one(case):
        with kernels():
            return case.compile()

    pool = ThreadPoolExecutor(THREADS)
    futures: dict[int, Future] = {
        number: pool.submit(compile_one, todo[number]) for number in range(arguments.first, len(todo))
    }

    def answer(number: int) -> dict:
        with kernels():
            return todo[number].check(futures.pop(number).result())

    serve(answer)


if __name__ == "__main__":
    main()
