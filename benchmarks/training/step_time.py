"""Training-step time, `anchor` against `full`: same model, same rows, alternating in one run.

    python -m benchmarks.training.step_time [--json]

The model is the quickstart's with Llama's proportion of heads (N * H = D; the quickstart has half). Rows are
made of documents of about 1024 tokens (lengths uniform in 512..1536, random bytes: the time does not depend
on the text). Both masks run on the `xla` attention with the same tiles; what differs is which tiles are
live. After one step of each to compile, the two alternate `--repeats` times. Reported are each one's median
and the median of the ratios of neighbouring steps, which a machine that slows down for a while disturbs least.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from anchorjax import data
from anchorjax.config import resolve
from anchorjax.data.store import tokens as store
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.sharding import shard_batch
from anchorjax.training.setup import Setup
from configs import quickstart

LENGTHS = (2048, 4096, 8192, 16384)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="row lengths, comma separated")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each mask")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    print(f"{'row':>6}  {'full s':>8}  {'anchor s':>8}  {'ratio':>6}  {'live pairs':>10}")
    results = {}
    for length in map(int, arguments.lengths.split(",")):
        results[str(length)] = row = measure(length, arguments.repeats)
        print(
            f"{length:>6}  {row['full_s']:>8.3f}  {row['anchor_s']:>8.3f}  {row['ratio']:>6.3f}  "
            f"{row['live_pairs']:>10.1%}",
            flush=True,
        )
    if arguments.json:
        print(json.dumps(results))


def measure(length: int, repeats: int) -> dict[str, float]:
    """Seconds of one training step with each mask, their ratio, and the share of causal pairs that `anchor` keeps."""
    runs = {mask: Run(mask, length) for mask in ("full", "anchor")}
    times = {mask: [] for mask in runs}
    for _ in range(repeats):
        for mask, run in runs.items():
            times[mask].append(run.step())
    full, anchor = (statistics.median(times[mask]) for mask in ("full", "anchor"))
    pairs = {mask: run.live_pairs for mask, run in runs.items()}
    ratios = (a / f for a, f in zip(times["anchor"], times["full"], strict=True))
    return {
        "full_s": full,
        "anchor_s": anchor,
        "ratio": statistics.median(ratios),
        "live_pairs": pairs["anchor"] / pairs["full"],
    }


class Run:
    """The model and one batch, under one mask."""

    def __init__(self, mask: str, length: int):
        config = quickstart.get_config()
        config.data.seq_len, config.data.mask = length, mask
        config.model.num_heads, config.model.num_kv_heads = 4, 2
        config.attention.implementation = "xla"
        self.setup = Setup.make(resolve(config.to_dict()))
        documents = random_documents(length)
        batch = next(data.eval_rows(documents, self.setup.tokenizer, self.setup.config.data, 1))
        with jax.set_mesh(self.setup.mesh):
            self.batch = shard_batch(batch, self.setup.mesh)
            self.state = jax.jit(self.setup.make_state)()
            self.train_step = jax.jit(self.setup.steps.train, donate_argnums=0)
        self.live_pairs = 0.0
        self.step()  # compiles

    def step(self) -> float:
        with jax.set_mesh(self.setup.mesh):
            started = time.perf_counter()
            self.state, metrics = self.train_step(self.state, self.batch)
            jax.block_until_ready((self.state, metrics))
            seconds = time.perf_counter() - started
        self.live_pairs = float(metrics["live_pairs"])
        return seconds


def random_documents(length: int) -> store.TokenStore:
    """One row's worth of documents of 512 to 1536 random bytes."""
    rng = np.random.default_rng(0)
    texts = []
    while sum(map(len, texts)) < length:
        texts.append("".join(map(chr, rng.integers(32, 127, rng.integers(512, 1537)))))
    return store.build([{"text": text} for text in texts], ByteTokenizer())


if __name__ == "__main__":
    main()
