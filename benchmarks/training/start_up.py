"""How long a run takes to start over a prepared store of a billion tokens.

    python -m benchmarks.training.start_up [--tokens=1000000000] [--json]

Makes a store on disk (random tokens, documents of the lengths of linux_doc_lengths.json) and starts `train.py` on it
and on one of a thousandth of its size, alternating: seconds from the start of the process to the line that says how
the first epoch is packed (by then Python and JAX are imported, the store is open, the weights are made and an epoch of
rows is planned), and to the end of the first step, which is mostly compilation. The size may only show in the first.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from anchorjax.data.store import tokens as store_lib
from anchorjax.data.store.index import OFFSETS, SOURCES, TOKENS, Index
from anchorjax.data.text.tokenizer import ByteTokenizer

ROOT = Path(__file__).resolve().parents[2]
SMALL = 1000  # how many times smaller the other store is
MARKS = {"planned": "of rows of", "first_step": "step 1"}  # what the lines of train.py hold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10**9, help="of the larger store")
    parser.add_argument("--packing", default="concat_split,best_fit,first_fit", help="comma separated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = {tokens: Path(folder) / str(tokens) for tokens in (arguments.tokens, arguments.tokens // SMALL)}
        for tokens, path in stores.items():
            write_store(path, tokens)
        for packing in arguments.packing.split(","):
            runs = {tokens: [] for tokens in stores}
            for _ in range(arguments.repeats):
                for tokens, path in stores.items():
                    runs[tokens].append(start(path, packing))
            figures[packing] = {
                tokens: {mark: statistics.median(run[mark] for run in some) for mark in MARKS}
                for tokens, some in runs.items()
            }
            for tokens, row in figures[packing].items():
                print(f"{packing:<13}{tokens:>14,} tokens: planned {row['planned']:.2f} s, ", end="")
                print(f"first step {row['first_step']:.2f} s", flush=True)
    if arguments.json:
        print(json.dumps(figures))


def write_store(path: Path, num_tokens: int) -> None:
    """Both splits; the validation split has a thousand tokens."""
    rng, tokenizer = np.random.default_rng(0), ByteTokenizer()
    known = json.loads((ROOT / "benchmarks/data/linux_doc_lengths.json").read_text())["lengths"]
    for split, size in (("train", num_tokens), ("validation", 1000)):
        directory = path / split
        directory.mkdir(parents=True)
        lengths = rng.choice(known, size=2 * size // int(np.mean(known)) + 2)
        lengths = lengths[: np.searchsorted(np.cumsum(lengths), size) + 1]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        with open(directory / TOKENS, "wb") as file:
            for first in range(0, int(offsets[-1]), 2**24):
                count = min(2**24, int(offsets[-1]) - first)
                file.write(rng.integers(0, 256, count, np.uint16).tobytes())
        np.save(directory / OFFSETS, offsets)
        np.save(directory / SOURCES, np.zeros(len(lengths), np.int16))
        Index(
            tokenizer=tokenizer.name,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            dtype="uint16",
            num_tokens=int(offsets[-1]),
            num_documents=len(lengths),
            source_names=["simulated"],
            source_documents=[len(lengths)],
            source_tokens=[int(offsets[-1])],
            sha256=dict.fromkeys((TOKENS, OFFSETS, SOURCES), "0" * 64),
            fingerprint="0" * 64,
            made_from="simulated",
            rows=len(lengths),
            bad_rows={},
            bad_places={},
            weighted_out=0,
            marks=0,
            lost={},
            lacking={},
        ).write(directory)
    store_lib.TokenStore.open(path / "train")


def start(store: Path, packing: str) -> dict[str, float]:
    """Seconds to each of MARKS."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, str(ROOT / "train.py"), "--config=configs/quickstart.py", f"--workdir={workdir}/run"]
        changes = {"data.store": store, "data.packing": packing, "train.steps": 1, "eval.final_rows": 1}
        command += [f"--config.{key}={value}" for key, value in changes.items()]
        began, seconds = time.perf_counter(), {}
        for line in lines_of(command):
            now = time.perf_counter() - began
            seconds |= {mark: now for mark, text in MARKS.items() if text in line and mark not in seconds}
    if seconds.keys() != MARKS.keys():
        sys.exit(f"{' '.join(command)} failed, or its lines are no longer {list(MARKS.values())}")
    return seconds


def lines_of(command: list[str]) -> Iterator[str]:
    with (
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=1
        ) as process,
        contextlib.suppress(BrokenPipeError),
    ):
        yield from process.stdout


if __name__ == "__main__":
    main()
