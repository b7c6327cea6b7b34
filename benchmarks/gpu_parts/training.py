"""Tokens a second and peak memory of the project's own training step, `anchor` against `full`, on rows of documents.

One row of real document lengths a step, bf16 compute, fp32 weights and AdamW moments. Each mask has a process of its
own (its peak of memory is its own, too); both are compiled at once, and then take steps in turn. MFU counts live
pairs and no recomputation (anchorjax/models/flops.py), against the matrix product that `ceilings` measured and
against the data sheet. A dry run takes `xla` attention: the GPU kernels' interpreter does not work inside `shard_map`.
"""

import functools
import statistics

from anchorjax.models.flops import PEAK_TFLOPS
from benchmarks.gpu_parts.part import Part, read
from benchmarks.gpu_parts.training_step import DRY_MODELS, MODELS
from benchmarks.gpu_parts.workers import Failed, Worker, in_parallel

MASKS = ("anchor", "full")
ROUNDS, DRY_ROUNDS = 5, 1
PATIENCE_S = 150.0  # for a step to be compiled


def main(part: Part) -> None:
    ceiling = next((one["tflops"] for one in read(part.file).get("ceilings", []) if "tflops" in one), None)
    for model, length in DRY_MODELS if part.dry_run else MODELS:
        workers = {mask: Worker("benchmarks.gpu_parts.training_step") for mask in MASKS}
        with part.guard("model", model=model, length=length):
            measure(part, workers, model, length, ceiling)
        for worker in workers.values():
            worker.close()


def measure(part: Part, workers: dict[str, Worker], model: str, length: int, ceiling: float | None) -> None:
    request = {"model": model, "length": length}
    asked = {
        mask: functools.partial(worker.ask, PATIENCE_S, **request, mask=mask, prepare=True)
        for mask, worker in workers.items()
    }
    ready = {}
    for mask, found in in_parallel(asked).items():
        with part.guard("step", **request, mask=mask):
            if isinstance(found, Exception):
                raise found
            ready[mask] = found
    times: dict[str, list[float]] = {mask: [] for mask in ready}
    for _ in range(DRY_ROUNDS if part.dry_run else ROUNDS):
        for mask, found in list(times.items()):
            with part.guard("step", **request, mask=mask):
                try:
                    found.append(workers[mask].ask(PATIENCE_S))
                except Failed:
                    del times[mask]
                    raise
    for mask, found in times.items():
        known, step_s = ready[mask], statistics.median(found)
        reached = known["flops"] / step_s / 1e12
        figures = {
            "step_s": step_s,
            "tokens_per_s": known["tokens"] / step_s,
            "tflops": reached,
            "mfu_measured": reached / ceiling if ceiling else None,
            "mfu_data_sheet": reached / PEAK_TFLOPS[known["device"]] if known["device"] in PEAK_TFLOPS else None,
        }
        memory = workers[mask].ask(memory=True)
        part.add("step", **request, mask=mask, **figures, **memory, **known, seconds=found)
    if set(times) == set(MASKS):
        ratios = [full / anchor for full, anchor in zip(times["full"], times["anchor"], strict=True)]
        part.add("ratio", **request, full_over_anchor=statistics.median(ratios))


if __name__ == "__main__":
    main(Part.asked("training"))
