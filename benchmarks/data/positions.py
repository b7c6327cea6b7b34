"""What the positions of a row cost on the host, and which distances they train.

    python -m benchmarks.data.positions [--json] [--lengths=4096,65536,131072] [--repeats=300]

Rows of conversations: eight blocks on average, questions and answers in turn, with log-normal lengths of 150 tokens on
average, packed by concat_split under the anchor. Positions that skip have eight positions for each token of a row. The
time is the process's own on its core, the median over rows: of the transform alone, and of making the whole row.
The distances are counted in the same rows (anchorjax/data/rows/distances.py).
"""

import argparse
import json
import time

import numpy as np

from anchorjax import data
from anchorjax.data.rows import distances
from anchorjax.data.rows.packing import RowPacker
from anchorjax.data.text.tokenizer import ByteTokenizer
from benchmarks.data.data import config_of

TOKENS, BLOCK, BLOCKS = 2**22, 150, 8
STRETCH = 8
SKIPS = {"max_position": STRETCH, "messages_key": "messages"}
CHOICES = {
    "continue": {},
    "reset": {},
    "pose": SKIPS,
    "skipalign": SKIPS,
    "skipalign inner": SKIPS | {"skipalign_where": "inner"},
    "skipalign outer": SKIPS | {"skipalign_where": "outer"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="4096,65536,131072", help="of rows")
    parser.add_argument("--repeats", type=int, default=300, help="rows of each measurement")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    store = conversations(np.random.default_rng(0))
    print(f"{store.num_tokens:,} tokens in {store.num_documents:,} conversations")
    print(f"{'row':>7}  {'positions':<16} {'transform us':>12} {'row us':>9}   probability of T/2, T-1, 4T, 8T-1")
    found = {}
    for T in map(int, arguments.lengths.split(",")):
        found[T] = {name: measure(store, T, name, changes, arguments.repeats) for name, changes in CHOICES.items()}
    if arguments.json:
        print(json.dumps(found))


def conversations(rng: np.random.Generator) -> data.TokenStore:
    """A store of random tokens in conversations, whose every second block is trained on."""
    sigma = 1.0
    lengths_K = 1 + rng.lognormal(np.log(BLOCK) - sigma**2 / 2, sigma, 2 * TOKENS // BLOCK).astype(np.int64)
    lengths_K = lengths_K[: np.searchsorted(np.cumsum(lengths_K), TOKENS)]
    ends_D = np.cumsum(2 * rng.geometric(2 / BLOCKS, len(lengths_K)))  # questions and answers come in pairs
    ends_D = ends_D[ends_D <= len(lengths_K)]
    lengths_K = lengths_K[: ends_D[-1]]
    ends_K = np.concatenate([[0], np.cumsum(lengths_K)])
    trained = np.repeat(np.arange(len(lengths_K)) % 2 == 1, lengths_K)
    offsets = np.concatenate([[0], ends_K[ends_D]])
    tokens = rng.integers(0, 256, offsets[-1], np.uint16)
    return data.TokenStore(tokens, offsets, "simulated", trained=trained)


def measure(store: data.TokenStore, T: int, name: str, changes: dict, repeats: int) -> dict:
    """Microseconds of a row's transform and of the row, and the probabilities of some distances."""
    keys = changes | {"positions": name.split()[0]}
    if "max_position" in keys:
        keys["max_position"] *= T
    packer = data.row_packer(store, ByteTokenizer(), config_of(T, **keys), seed=0)
    packer.row(0)  # makes the plan
    timed = Timed(packer)
    rows_us = [timed.row(index) for index in range(repeats)]
    asked_D = np.array([T // 2, T - 1, 4 * T, 8 * T - 1])
    probability_D = distances.measure(packer, range(repeats), asked_D).documents.probability_D
    figures = {
        "transform_us": float(np.median(timed.transform_us)),
        "row_us": float(np.median(rows_us)),
        "probability": dict(zip(map(str, asked_D.tolist()), probability_D.tolist(), strict=True)),
    }
    shown = "  ".join(f"{value:.4f}" for value in probability_D)
    print(f"{T:>7}  {name:<16} {figures['transform_us']:>12.0f} {figures['row_us']:>9.0f}   {shown}", flush=True)
    return figures


class Timed:
    """A packer's rows, with the time of each and of the transform in it."""

    def __init__(self, packer: RowPacker):
        self._packer, self.transform_us = packer, []
        positions_of = packer._positions_of

        def timed(pieces, index):
            started = time.thread_time_ns()
            result = positions_of(pieces, index)
            self.transform_us.append((time.thread_time_ns() - started) / 1000)
            return result

        object.__setattr__(packer, "_positions_of", timed)

    def row(self, index: int) -> float:
        started = time.thread_time_ns()
        self._packer.row(index)
        return (time.thread_time_ns() - started) / 1000


if __name__ == "__main__":
    main()
