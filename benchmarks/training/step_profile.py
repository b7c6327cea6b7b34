"""Where the seconds of a training step of SmolLM2-135M go on the CPU: ours and transformers', part by part.

    python -m benchmarks.training.step_profile [--length=4096] [--sides=full,anchor,transformers] [--layers=0] [--json]

The steps are those of `vs_transformers.py`. One of each, after one that compiles, is traced: ours by `jax.profiler`,
whose events are the instructions of the compiled step, transformers' by `torch.profiler`. A line is a part of the step:

    attention products    of queries, keys, values and scores       output products   of the output matrix, 3 of them
    attention rest        softmax, masks, anchors, layouts          loss rest         softmax over the vocabulary
    layer products        projections and feed-forward, 3 each      rest              optimizer, clip, embedding, copies
    layer rest            norms, RoPE, activations, residuals

GFLOP are those of the products done, also of what a tile computes in vain; for torch's attention those of a causal row.
The share is that of the peak: the fastest product of two fp32 matrices of side 4096, by XLA or torch, in this process,
tried before and after each side.
XLA runs parts of a step beside each other, and its own products (weights' gradients) do not wait: what runs beside one
is charged for both, and the lines of ours add up to more than the step.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch

from benchmarks.training import step_trace, vs_transformers

SIDES = (*vs_transformers.MASKS, "transformers")
PEAK_SIDE = 4096
PARTS = {  # files of the project, innermost frame first
    "attention/xla.py": "attention",
    "attention/anchors.py": "attention",
    "attention/gradient.py": "attention",
    "models/rope.py": "layer",
    "models/layers.py": "layer",
    "models/decoder.py": "layer",
    "models/loss.py": "loss",
}
PRODUCTS = {"attention": "attention products", "layer": "layer products", "loss": "output products"}
LINES = ("attention products", "attention rest", "layer products", "layer rest", "output products", "loss rest", "rest")
TORCH_LINES = {  # what an operation's name begins with
    "aten::_scaled_dot_product": "attention products",
    "aten::_log_softmax": "loss rest",
    "aten::nll_loss": "loss rest",
    "aten::_fused_adamw": "rest",
    "aten::_foreach": "rest",
    "aten::embedding": "rest",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096, help="tokens of the row")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"of {', '.join(SIDES)}")
    parser.add_argument("--layers", type=int, default=0, help="fewer than the model's 30 take less time")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    sides = arguments.sides.split(",")
    ours = vs_transformers.Ours(arguments.length, "", arguments.layers)
    results, peak = {}, peak_gflops()
    for side in sides:
        results[side] = profile_torch(ours) if side == "transformers" else profile_ours(ours, side)
        peak = max(peak, peak_gflops())  # other work on the machine disturbs it too
    print(f"peak: {peak:.0f} GFLOP/s")
    for side, lines in results.items():
        show(side, lines, peak)
    if arguments.json:
        print(json.dumps(results | {"peak_gflops": peak}))


def peak_gflops() -> float:
    """The best of five products by each library."""
    torch.set_num_threads(os.cpu_count())
    x = np.random.default_rng(0).normal(size=(PEAK_SIDE, PEAK_SIDE)).astype("float32")
    x_torch, x_jax, multiply = torch.tensor(x), jax.numpy.asarray(x), jax.jit(lambda x: x @ x)
    calls = [lambda: x_torch @ x_torch, lambda: jax.block_until_ready(multiply(x_jax))]
    return 2 * PEAK_SIDE**3 / 1e9 / min(seconds(call) for call in calls for _ in range(5))


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def show(side: str, lines: dict[str, dict[str, float]], peak: float) -> None:
    print(f"\n{side:<22}{'seconds':>8}  {'GFLOP':>7}  {'GFLOP/s':>7}  {'of peak':>7}")
    for name, line in lines.items():
        rate = line["gflop"] / line["s"] if line["s"] else 0.0
        products = f"  {line['gflop']:>7.0f}  {rate:>7.0f}  {rate / peak:>7.0%}" if line["gflop"] else ""
        print(f"{name:<22}{line['s']:>8.2f}{products}", flush=True)


def profile_ours(ours: vs_transformers.Ours, mask: str) -> dict[str, dict[str, float]]:
    with jax.set_mesh(ours.mesh):
        compiled = ours.train_steps[mask].lower(ours.state, ours.batches[mask]).compile()
        parts = step_trace.instructions(compiled.as_text(), tuple(PARTS))

        def step() -> None:
            ours.state, _ = jax.block_until_ready(compiled(ours.state, ours.batches[mask]))

        step()
        with tempfile.TemporaryDirectory() as directory:
            with jax.profiler.trace(directory):
                wall = seconds(step)
            events = step_trace.trace_events(Path(directory))
    lines = {name: {"s": 0.0, "gflop": 0.0} for name in LINES}
    for name, own_seconds in step_trace.own_times(events):
        line = lines[line_of(parts.get(name))]
        line["s"] += own_seconds
        line["gflop"] += parts[name].flops / 1e9 if name in parts else 0.0
    return lines | {"whole step": {"s": wall, "gflop": sum(line["gflop"] for line in lines.values())}}


def line_of(instruction: step_trace.Instruction | None) -> str:
    part = PARTS.get(instruction.file) if instruction else None
    if part is None:
        return "rest"
    return PRODUCTS[part] if instruction.flops else f"{part} rest"


def profile_torch(ours: vs_transformers.Ours) -> dict[str, dict[str, float]]:
    theirs = vs_transformers.Theirs(ours.packed["full"], "", ours.layers)
    theirs.step()
    with torch.profiler.profile(record_shapes=True) as profiler:
        wall = seconds(theirs.step)
    lines = {name: {"s": 0.0, "gflop": 0.0} for name in LINES}
    for event in profiler.key_averages(group_by_input_shape=True):
        name, gflop = torch_line(event, theirs)
        lines[name]["s"] += event.self_cpu_time_total / 1e6
        lines[name]["gflop"] += gflop
    return lines | {"whole step": {"s": wall, "gflop": sum(line["gflop"] for line in lines.values())}}


def torch_line(event, theirs: vs_transformers.Theirs) -> tuple[str, float]:
    """Which line an operation belongs to, and its GFLOP."""
    shapes = event.input_shapes
    if event.key in ("aten::mm", "aten::addmm", "aten::bmm"):
        (m, k), n = shapes[0][-2:], shapes[1][-1]
        vocabulary = theirs.model.config.vocab_size
        name = "output products" if vocabulary in (m, k, n) else "layer products"
        return name, 2e-9 * event.count * m * k * n
    if event.key.startswith("aten::_scaled_dot_product"):
        B, N, T, H = shapes[0]
        products = 5 if "backward" in event.key else 2
        return "attention products", 1e-9 * event.count * products * B * N * T * T * H
    for beginning, name in TORCH_LINES.items():
        if event.key.startswith(beginning):
            return name, 0.0
    if "Optimizer" in event.key or "clip" in event.key:
        return "rest", 0.0
    return "layer rest", 0.0


if __name__ == "__main__":
    main()
