"""Does `pallas_gpu` keep its contract on the device? Compiled kernels, not interpreted ones, against exact numbers.

    numbers   output, log-sum-exp and gradients on drawn layouts (contiguous, interleaved, pads, dead rows), against
              float64 on the host and `reference` on the device; the same bits twice; exact zeros for pads
    leakage   the probes of anchorjax/attention/leakage.py, forward and backward
    long      a row of 8192 tokens, whose float64 scores would take minutes: against `reference`
    far       a row of 2^20 tokens and more than 4 GB, where addresses take 64 bits: its last documents against
              `reference` on a row of their own

fp32 errors are |got - exact| / (1 + |exact|), the worst over all numbers; bf16 errors |got - exact| / |exact| of whole
arrays (Frobenius), the worst over the arrays. Each case is asked of a worker, and a worker that dies is replaced.
"""

import dataclasses

from benchmarks.gpu_parts.contract_cases import cases
from benchmarks.gpu_parts.part import Part
from benchmarks.gpu_parts.workers import Failed, Worker

PATIENCE_S = 90.0  # for one case, most of it compilation


def main(part: Part) -> None:
    arguments = ["--dry-run"] if part.dry_run else []
    worker = None
    for number, case in enumerate(cases(part.dry_run)):
        fields = {name: value for name, value in dataclasses.asdict(case).items() if value is not None}
        fields = {"kind": type(case).__name__.lower(), **fields}
        with part.guard("case", **fields):
            worker = worker or Worker("benchmarks.gpu_parts.contract_worker", f"--first={number}", *arguments)
            try:
                found = worker.ask(PATIENCE_S, number=number)
            except Failed:  # its GPU may be lost to it
                worker.close()
                worker = None
                raise
            part.add("case", **fields, **found)
    if worker:
        worker.close()


if __name__ == "__main__":
    main(Part.asked("contract"))
