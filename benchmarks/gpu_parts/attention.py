"""Forward and backward rates of attention on rows of documents, ours beside other people's, by live pairs.

32 query heads over 8 key heads of width 128, bf16, one row; real document lengths ("linux") and twelve equal ones.

    kernels             ours, the plan given: as in all layers of a step but the first
    plan_and_kernels    ours with the plan; `plan` is the plan alone
    full                ours under the full mask
    cudnn_full          jax.nn.dot_product_attention, cuDNN, causal over the whole row
    tokamax_full        tokamax's kernels likewise, if it is installed
    flex                torch flex_attention, compiled, with the same anchor mask; `flex_block_mask` is its block mask
    varlen_copied       torch.nn.attention.varlen (FlashAttention), every document behind a copy of the anchor
    sdpa_copied         torch scaled_dot_product_attention, the same, document by document

FLOPs are 4 H per live pair and query head forward (two matmuls), and 14 H with the backward pass (seven, as
FlashAttention counts), whatever a peer computes beside them: `tflops` compares useful work, `own_tflops` counts the
pairs of the peer's own mask. Under the full masks both are those of the causal triangle. JAX and PyTorch are processes
of their own and take turns, call by call, in every round; a call is timed by the host, over enough of them in a
row that launching is hidden. `difference` is that of the last query's output and gradient (two heads) from ours.
"""

import contextlib
import functools
import statistics

import numpy as np

from benchmarks.gpu_parts import rows
from benchmarks.gpu_parts.part import Part, Unavailable, told
from benchmarks.gpu_parts.workers import Failed, Worker, in_parallel

N, K, H = 32, 8, 128
DRY_N, DRY_K, DRY_H = 2, 1, 16
LENGTHS = (65536, 8192, 131072, 32768)  # the most telling ones first
DRY_LENGTHS = (256,)
FULL = ("full", "cudnn_full", "tokamax_full")
CALLS = {
    "jax": ("kernels", "plan_and_kernels", "plan", *FULL),
    "torch": ("flex", "flex_block_mask", "varlen_copied", "sdpa_copied"),
}
PLANS = ("plan", "flex_block_mask")  # no attention: they have no passes
FLOPS_PER_PAIR = {"forward": 4, "forward_backward": 14}  # times heads and their width
ROUNDS, DRY_ROUNDS = 5, 1
PATIENCE_S = 100.0  # for one call to be compiled

Call = tuple[str, str, str]  # whose, name, pass


def heads(dry_run: bool) -> tuple[int, int, int]:
    return (DRY_N, DRY_K, DRY_H) if dry_run else (N, K, H)


def base_arrays(dry_run: bool, length: int) -> list[np.ndarray]:
    """fp32 [P, heads, H] of q, k, v and the cotangent, to be repeated along a row of `length`: the same everywhere."""
    rng, (query, key, width) = np.random.default_rng(0), heads(dry_run)
    return [rng.standard_normal((min(length, 4096), n, width), np.float32) for n in (query, key, key, query)]


def main(part: Part) -> None:
    arguments = ["--dry-run"] if part.dry_run else []
    workers = {side: Worker(f"benchmarks.gpu_parts.{side}_calls", *arguments) for side in CALLS}
    for length in DRY_LENGTHS if part.dry_run else LENGTHS:
        for layout in rows.LAYOUTS:
            with part.guard("row", length=length, layout=layout):
                measure(part, workers, length, layout)
        for worker in workers.values():
            with contextlib.suppress(Failed, Unavailable):
                worker.ask(forget=True)
    for worker in workers.values():
        worker.close()


def measure(part: Part, workers: dict[str, Worker], length: int, layout: str) -> None:
    """Records of one row, one for each call."""
    fields = {"length": length, "layout": layout}
    lengths = rows.document_lengths(layout, length)
    pairs = {"live": rows.live_pairs(lengths), "causal": length * (length + 1) // 2}
    pairs["copied"] = rows.copied_pairs(lengths)
    part.add("row", **fields, documents=len(lengths), **pairs)
    ready = prepare(part, workers, fields)
    times: dict[Call, list[float]] = {call: [] for call in ready}
    for _ in range(DRY_ROUNDS if part.dry_run else ROUNDS):
        for (side, name, which), found in list(times.items()):
            with part.guard("call", name=name, which=which, **fields):
                try:
                    found.append(workers[side].ask(PATIENCE_S, name=name, which=which, **fields))
                except Failed:
                    del times[side, name, which]
                    raise
    for call, found in times.items():
        _, name, which = call
        answers = {key: value for key, value in ready[call].items() if key != "answer"}
        counted = rates(name, which, pairs, heads(part.dry_run), statistics.median(found))
        difference = differs(call, ready)
        part.add("call", name=name, which=which, **fields, **answers, **counted, difference=difference, seconds=found)


def prepare(part: Part, workers: dict[str, Worker], fields: dict) -> dict[Call, dict]:
    """Compiles the calls, both sides at once; what cannot be is recorded, and left out."""
    some = {side: [name for name in names if wanted(name, fields["layout"])] for side, names in CALLS.items()}
    calls = {side: [(name, which) for name in names for which in passes(name)] for side, names in some.items()}

    def side_of(side: str) -> dict[Call, dict | Exception]:
        found: dict[Call, dict | Exception] = {}
        for name, which in calls[side]:
            try:
                found[side, name, which] = workers[side].ask(PATIENCE_S, name=name, which=which, prepare=True, **fields)
            except (Failed, Unavailable) as error:
                found[side, name, which] = error
        return found

    both = in_parallel({side: functools.partial(side_of, side) for side in CALLS})
    ready = {}
    for (side, name, which), found in (item for replies in both.values() for item in replies.items()):
        if isinstance(found, Exception):
            why = {"skipped": str(found)} if isinstance(found, Unavailable) else {"failed": told(found)}
            part.add("call", name=name, which=which, **fields, **why)
        else:
            ready[side, name, which] = found
    return ready


def wanted(name: str, layout: str) -> bool:
    """Full masks know no documents: one layout is enough."""
    return name not in FULL or layout == rows.LAYOUTS[0]


def passes(name: str) -> tuple[str, ...]:
    return ("plan",) if name in PLANS else tuple(FLOPS_PER_PAIR)


def rates(name: str, which: str, pairs: dict[str, int], shape: tuple[int, int, int], seconds: float) -> dict:
    result = {"ms": seconds * 1e3}
    if which in FLOPS_PER_PAIR:
        flops = FLOPS_PER_PAIR[which] * shape[0] * shape[2]
        live = pairs["causal"] if name in FULL else pairs["live"]
        own = pairs["copied"] if name.endswith("copied") else live
        result |= {"tflops": flops * live / seconds / 1e12, "own_tflops": flops * own / seconds / 1e12}
    return result


def differs(call: Call, ready: dict[Call, dict]) -> float | None:
    """From ours under the same mask, |theirs - ours| / |ours|; None where there is nothing to compare."""
    _, name, which = call
    other = ready.get(("jax", "full" if name in FULL else "kernels", which))
    if which not in FLOPS_PER_PAIR or other is None or other is ready[call]:
        return None
    theirs, ours = (np.asarray(x["answer"], np.float64) for x in (ready[call], other))
    return float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))


if __name__ == "__main__":
    main(Part.asked("attention"))
