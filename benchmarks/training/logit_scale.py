"""What scaled logits cost the quickstart's training step: operations of the compiled step, and time in turns.

    python -m benchmarks.training.logit_scale [--length=4096] [--repeats=9] [--json]

The model is the quickstart's, on one row of `--length` tokens in documents of 512 to 1536. Operations and FLOPs are
those of the step as XLA compiled it for this machine: instructions of all computations, fused ones among them, and the
loop over layers once. After one step of each to compile, one step of each alternates `--repeats` times; the ratio is
the median of the ratios of neighbouring steps to the plain one.
"""

import argparse
import json
from typing import Any

import numpy as np

from anchorjax import data
from anchorjax.config import resolve
from anchorjax.training.setup import Setup
from benchmarks.training.step_time import random_documents
from benchmarks.training.steps import Run, in_turns
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
    runs = {"none": make("none", "position", length)}
    for name in NAMES[1:]:
        runs |= {f"{name} by {by}": make(name, by, length) for by in ("position", "visible")}
    seconds = in_turns(runs, repeats)
    return {
        name: {
            "operations": run.compiled.as_text().count(" = "),
            "gflop": run.compiled.cost_analysis()["flops"] / 1e9,
            "s": float(np.median(seconds[name])),
            "ratio": float(np.median(seconds[name] / seconds["none"])),
        }
        for name, run in runs.items()
    }


def make(name: str, by: str, length: int) -> Run:
    """The model and one batch, with one scale of logits."""
    config = quickstart.get_config()
    config.data.seq_len = length
    scale: dict[str, Any] = {"logit_scale": name, "logit_scale_by": by, "logit_scale_length": length // 4}
    config.attention.update(scale if name != "none" else {})
    setup = Setup.make(resolve(config.to_dict()))
    return Run(setup, next(data.eval_rows(random_documents(length), setup.tokenizer, setup.config.data, 1)))


if __name__ == "__main__":
    main()
