"""What scaled logits cost the quickstart's training step: operations of the compiled step, and time in turns.

    python -m benchmarks.training.logit_scale [--length=4096] [--repeats=9] [--json]

The model is the quickstart's, on one row of `--length` tokens in documents of 512 to 1536. Operations and FLOPs are
those of the step as XLA compiled it for this machine: instructions of all computations, fused ones among them, and the
loop over layers once. After one step of each to compile, one step of each alternates `--repeats` times; the ratio is
the median of the ratios of neighbouring steps to the plain one.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax

from anchorjax import data
from anchorjax.config import resolve
from anchorjax.sharding import shard_batch
from anchorjax.training.setup import Setup
from benchmarks.training.step_time import random_documents
from configs import quickstart

NAMES = ("none", "entropy_abf", "scalable_softmax")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096, help="tokens of the row")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    found = measure(arguments.length, arguments.repeats)
    print(f"{'logits':<28}{'operations':>11}{'GFLOP':>9}{'s':>8}{'ratio':>8}")
    for name, row in found.items():
        print(f"{name:<28}{row['operations']:>11,}{row['gflop']:>9.3f}{row['s']:>8.3f}{row['ratio']:>8.3f}")
    if arguments.json:
        print(json.dumps(found))


def measure(length: int, repeats: int) -> dict[str, dict[str, float]]:
    """By scale of logits: instructions and GFLOP of the compiled step, median seconds, and their ratio to the plain."""
    runs = {"none": Run("none", "position", length)}
    for name in NAMES[1:]:
        runs |= {f"{name} by {by}": Run(name, by, length) for by in ("position", "visible")}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(run.step())
    return {
        name: {
            "operations": run.operations,
            "gflop": run.gflop,
            "s": statistics.median(seconds[name]),
            "ratio": statistics.median(a / b for a, b in zip(seconds[name], seconds["none"], strict=True)),
        }
        for name, run in runs.items()
    }


class Run:
    """The model and one batch, with one scale of logits."""

    def __init__(self, name: str, by: str, length: int):
        config = quickstart.get_config()
        config.data.seq_len = length
        scale: dict[str, Any] = {"logit_scale": name, "logit_scale_by": by, "logit_scale_length": length // 4}
        config.attention.update(scale if name != "none" else {})
        self.setup = Setup.make(resolve(config.to_dict()))
        batch = next(data.eval_rows(random_documents(length), self.setup.tokenizer, self.setup.config.data, 1))
        with jax.set_mesh(self.setup.mesh):
            self.batch = shard_batch(batch, self.setup.mesh)
            self.state = jax.jit(self.setup.make_state)()
            step = jax.jit(self.setup.steps.train, donate_argnums=0)
            self.train_step = step.lower(self.state, self.batch).compile()
        self.operations = self.train_step.as_text().count(" = ")
        self.gflop = self.train_step.cost_analysis()["flops"] / 1e9
        self.step()

    def step(self) -> float:
        with jax.set_mesh(self.setup.mesh):
            started = time.perf_counter()
            self.state, metrics = self.train_step(self.state, self.batch)
            jax.block_until_ready((self.state, metrics))
            return time.perf_counter() - started


if __name__ == "__main__":
    main()
