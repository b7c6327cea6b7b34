"""How fast batches are packed, how much memory that takes, and grain's own packers beside it.

    python -m benchmarks.data.data [--json] [--tokens=1000000000] [--seconds=5]

A store of random tokens in a file, memory-mapped, with the lengths of the `linux` documents drawn anew (see
linux_doc_lengths.json), read as training reads it: `data.train_batches`, one thread ahead. grain's packers read the
same documents, cut to rows where they are longer, and give tokens, segment ids and positions; ours also targets and
weights. A packer of grain keeps a number of open rows: the least of OPEN_ROWS with which it fills rows as ours does,
to half a percent, or the most.

Seconds are wall seconds and, as other programs may run, those of the process on its cores. Tokens are those of text:
pads do not count.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
from grain import experimental

from anchorjax import data
from anchorjax.config import DataConfig, resolve
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.types import PACKINGS
from configs import quickstart

BATCH_SIZE = {4096: 16, 65536: 4, 131072: 2}
OPEN_ROWS = (16, 64, 256)
VARIANTS = {"tags": {"tags": True}, "interleave": {"interleave": 3}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10**9, help="of the store")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--lengths", default="4096,65536,131072", help="of rows")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    seq_lens = [int(length) for length in arguments.lengths.split(",")]
    with simulated_store(arguments.tokens) as store:
        print(f"{store.num_tokens:,} tokens in {store.num_documents:,} documents")
        print(f"{'row':>6}  {'packing':<24} {'fill':>7} {'cut':>6} {'plan s':>7} {'Mtokens/s':>9} {'per core':>9}")
        rows = {T: dict(measure(store, T, arguments.seconds)) for T in seq_lens}
        grown = memory_growth(store, seq_lens[-1])
    print(f"memory of its own after {grown['tokens']:,} tokens: {grown['growth_mb']:+.1f} MB")
    if arguments.json:
        rates = {str(T): row["concat_split"]["tokens_per_s"] for T, row in rows.items()}
        print(json.dumps({"tokens_per_s": rates, "rows": rows, "memory": grown}))


@contextlib.contextmanager
def simulated_store(num_tokens: int) -> Iterator[data.TokenStore]:
    """A store in a temporary file, which is written so that reading it is reading a file."""
    rng = np.random.default_rng(0)
    known = json.loads((Path(__file__).parent / "linux_doc_lengths.json").read_text())["lengths"]
    lengths = rng.choice(known, size=2 * num_tokens // int(np.mean(known)) + 2)
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), num_tokens) + 1]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    with tempfile.NamedTemporaryFile(suffix=".tokens") as file:
        for first in range(0, int(offsets[-1]), 2**24):
            count = min(2**24, int(offsets[-1]) - first)
            file.write(rng.integers(0, 256, count, np.uint16).tobytes())
        file.flush()
        yield data.TokenStore(np.memmap(file.name, np.uint16, "r"), offsets, "simulated")


def config_of(seq_len: int, **changes) -> DataConfig:
    config = quickstart.get_config().to_dict()
    config["data"] |= {"seq_len": seq_len, "batch_size": BATCH_SIZE.get(seq_len, 2), "prefetch": 2} | changes
    return resolve(config).data


def measure(store: data.TokenStore, seq_len: int, seconds: float) -> Iterator[tuple[str, dict]]:
    """(what, its figures) of our packings and variants and of grain's packers, each printed."""
    fills = {}
    for name, changes in {**{packing: {"packing": packing} for packing in PACKINGS}, **VARIANTS}.items():
        config = config_of(seq_len, **changes)
        started = time.perf_counter()
        report = data.row_packer(store, ByteTokenizer(), config, seed=0).report()
        plan_s = time.perf_counter() - started
        fills[name] = report.fill
        per_batch = config.batch_size * (seq_len - 1) * report.fill
        with contextlib.closing(data.train_batches(store, ByteTokenizer(), config, seed=0, start_step=0)) as batches:
            figures = {"fill": report.fill, "cut": report.cut, "plan_s": plan_s}
            figures |= speed(((batch, per_batch) for batch in batches), seconds)
        yield name, show(seq_len, name, figures)
    for name, packer in GRAIN.items():
        for open_rows in OPEN_ROWS if name != "concat_split" else (0,):
            packed = packer(grain_documents(store, seq_len, name), seq_len, open_rows)
            figures = grain_speed(iter(packed.batch(config.batch_size)), seconds)
            if figures["fill"] >= fills[name] - 0.005:
                break
        figures["open_rows"] = open_rows
        label = f"grain {name} {open_rows or ''}"
        yield f"grain_{name}", show(seq_len, label, figures)


def speed(batches: Iterator[tuple[object, float]], seconds: float) -> dict:
    """Tokens a second of (batch, its tokens)."""
    next(batches)  # makes the plan
    tokens, wall, cores = 0.0, time.perf_counter(), time.process_time()
    while time.perf_counter() < wall + seconds:
        tokens += next(batches)[1]
    wall, cores = time.perf_counter() - wall, time.process_time() - cores
    return {"tokens_per_s": tokens / wall, "tokens_per_core_s": tokens / cores}


def grain_speed(batches: Iterator[dict], seconds: float) -> dict:
    fills = []

    def counted():
        for batch in batches:
            tokens = int(np.count_nonzero(batch["tokens_segment_ids"]))
            fills.append(tokens / batch["tokens"].size)
            yield batch, tokens

    figures = speed(counted(), seconds)
    return {"fill": float(np.mean(fills))} | figures


def grain_documents(store: data.TokenStore, seq_len: int, packing: str) -> grain.IterDataset:
    """The documents in random order, in pieces of a row's length for packers that take no longer ones."""
    offsets, most = store.offsets, seq_len - 1
    if packing == "concat_split":
        starts, ends = offsets[:-1], offsets[1:]
    else:
        pieces = -(-np.diff(offsets) // most)
        first = np.cumsum(pieces) - pieces
        document = np.repeat(np.arange(store.num_documents), pieces)
        starts = offsets[document] + (np.arange(len(document)) - first[document]) * most
        ends = np.minimum(starts + most, offsets[document + 1])
    tokens = np.asarray(store.tokens)
    ranges = grain.MapDataset.range(len(starts)).shuffle(seed=0).repeat()
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
    return ranges.map(lambda i: {"tokens": tokens[starts[i] : ends[i]].astype(np.int32)}).to_iter_dataset(options)


GRAIN = {
    "concat_split": lambda documents, T, _: experimental.ConcatThenSplitIterDataset(
        documents, length_struct={"tokens": T - 1}
    ),
    "first_fit": lambda documents, T, open_rows: experimental.FirstFitPackIterDataset(
        documents, length_struct={"tokens": T - 1}, num_packing_bins=open_rows
    ),
    "best_fit": lambda documents, T, open_rows: experimental.BestFitPackIterDataset(
        documents, length_struct={"tokens": T - 1}, num_packing_bins=open_rows
    ),
}


def show(seq_len: int, name: str, figures: dict) -> dict:
    cut = f"{figures['cut']:.1%}" if "cut" in figures else "-"
    plan = f"{figures['plan_s']:.2f}" if "plan_s" in figures else "-"
    rates = f"{figures['tokens_per_s'] / 1e6:>9.2f} {figures['tokens_per_core_s'] / 1e6:>9.2f}"
    print(f"{seq_len:>6}  {name:<24} {figures['fill']:>7.2%} {cut:>6} {plan:>7} {rates}", flush=True)
    return figures


def memory_growth(store: data.TokenStore, seq_len: int) -> dict:
    """Memory of the process's own (not of the file's pages) between a tenth and all of an epoch."""
    config = config_of(seq_len, packing="best_fit")
    steps = data.row_packer(store, ByteTokenizer(), config, seed=0).report().rows // config.batch_size
    with contextlib.closing(data.train_batches(store, ByteTokenizer(), config, seed=0, start_step=0)) as batches:
        for step in range(steps):
            next(batches)
            if step == steps // 10:
                before = own_memory_mb()
        after = own_memory_mb()
    tokens = steps * config.batch_size * seq_len
    return {"tokens": tokens, "growth_mb": after - before, "own_mb": after}


def own_memory_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
