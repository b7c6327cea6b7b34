"""Training-step time of each training method against AnchorAttention alone, in turns, in one run.

    python -m benchmarks.training.methods_time [--length=4096] [--repeats=7] [--methods=pose,longce,...] [--json]

The model and the rows are those of benchmarks/training/step_time.py: the quickstart's with Llama's proportion of heads,
documents of about a quarter of 4096 tokens. Each method sets its own keys (`method(config)` of configs/methods). After
one step of each to compile, one step of `anchor` and one of each method alternate `--repeats` times. Reported are the
median seconds and the median of the ratios of neighbouring steps. A method whose step changes with the number of the
step, as window_schedule, is timed at its first rows.
"""

import argparse
import dataclasses
import json

import numpy as np

from anchorjax import data
from anchorjax.config import resolve
from anchorjax.training import objectives
from anchorjax.training.setup import Setup
from benchmarks.training.methods import METHODS, applied
from benchmarks.training.step_time import random_documents
from benchmarks.training.steps import Run, in_turns
from configs import quickstart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each method")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma separated")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    methods = ["anchor", *(name for name in arguments.methods.split(",") if name != "anchor")]
    if unknown := set(methods) - set(METHODS):
        parser.error(f"--methods={','.join(unknown)} is not allowed: of {', '.join(METHODS)}")
    seconds = in_turns({method: make(method, arguments.length) for method in methods}, arguments.repeats)
    results = {}
    print(f"{'method':<18}{'s':>8}{'ratio':>8}")
    for method, times in seconds.items():
        ratio = float(np.median(times / seconds["anchor"]))
        results[method] = {"s": float(np.median(times)), "ratio": ratio}
        print(f"{method:<18}{results[method]['s']:>8.3f}{ratio:>8.3f}")
    if arguments.json:
        print(json.dumps(results))


def make(method: str, length: int) -> Run:
    """The model and one batch, with one method."""
    config = quickstart.get_config()
    config.data.seq_len = length
    config.model.num_heads, config.model.num_kv_heads = 4, 2
    config.attention.implementation = "xla"
    setup = Setup.make(resolve(applied(method, config).to_dict()))
    store, section, seed = random_documents(8 * length), setup.config.data, setup.config.seed
    packer = data.row_packer(store, setup.tokenizer, section, seed)
    steps = dataclasses.replace(setup.steps, objective=objectives.make(setup.config, packer.targets_by_context()))
    batches = data.train_batches(store, setup.tokenizer, section, seed=seed, start_step=0)
    batch = next(batches)
    batches.close()
    return Run(setup, batch, steps)


if __name__ == "__main__":
    main()
