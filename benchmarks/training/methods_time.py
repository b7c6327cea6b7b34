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
import statistics
import time

import jax

from anchorjax import data
from anchorjax.config import resolve
from anchorjax.sharding import shard_batch
from anchorjax.training import objectives
from anchorjax.training.setup import Setup
from benchmarks.training.methods import METHODS, applied
from benchmarks.training.step_time import random_documents
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
    runs = {method: Run(method, arguments.length) for method in methods}
    seconds: dict[str, list[float]] = {method: [] for method in runs}
    for _ in range(arguments.repeats):
        for method, run in runs.items():
            seconds[method].append(run.step())
    results = {}
    print(f"{'method':<18}{'s':>8}{'ratio':>8}")
    for method, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds["anchor"], strict=True))
        results[method] = {"s": statistics.median(times), "ratio": ratio}
        print(f"{method:<18}{results[method]['s']:>8.3f}{ratio:>8.3f}")
    if arguments.json:
        print(json.dumps(results))


class Run:
    """The model and one batch, with one method."""

    def __init__(self, method: str, length: int):
        config = quickstart.get_config()
        config.data.seq_len = length
        config.model.num_heads, config.model.num_kv_heads = 4, 2
        config.attention.implementation = "xla"
        self.setup = setup = Setup.make(resolve(applied(method, config).to_dict()))
        store, section, seed = random_documents(8 * length), setup.config.data, setup.config.seed
        packer = data.row_packer(store, setup.tokenizer, section, seed)
        objective = objectives.make(setup.config, packer.targets_by_context())
        steps = dataclasses.replace(setup.steps, objective=objective)
        batches = data.train_batches(store, setup.tokenizer, section, seed=seed, start_step=0)
        with jax.set_mesh(setup.mesh):
            self.batch = shard_batch(next(batches), setup.mesh)
            self.state = jax.jit(setup.make_state)()
            self.train_step = jax.jit(steps.train, donate_argnums=0)
        batches.close()
        self.step()  # compiles

    def step(self) -> float:
        with jax.set_mesh(self.setup.mesh):
            started = time.perf_counter()
            self.state, metrics = self.train_step(self.state, self.batch)
            jax.block_until_ready((self.state, metrics))
            return time.perf_counter() - started


if __name__ == "__main__":
    main()
