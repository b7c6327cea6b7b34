"""Speed of `anchorjax prepare` with a real tokenizer, beside the `tokenizers` library's own batches.

    python -m benchmarks.data.tokenizing --tokenizer=checkpoints/SmolLM2-135M-Instruct [--json]

The shipped text, twelve times over, as plain JSON lines is prepared into a store: read, checked, tokenized, written,
joined and hashed. The library is given the same texts from memory, in batches of 1000, and its ids are thrown away: it
does less. Both take all cores; they alternate, and the ratio is taken pair by pair. A first round is not counted.
"""

import argparse
import dataclasses
import gzip
import json
import statistics
import tempfile
import time
from pathlib import Path

import tokenizers

from anchorjax.config import DataConfig, resolve
from anchorjax.data.store import preparing
from configs import quickstart

CORPUS = Path(__file__).resolve().parents[2] / "anchorjax/data/corpora/public_domain.jsonl.gz"
COPIES = 12  # so that opening the tokenizer is a small part
BATCH = 1000  # documents; what `datasets.map` gives a tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, type=Path, help="a Hugging Face directory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", default="0,2", help="numbers of processes, comma separated")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.jsonl"
        file.write_bytes(COPIES * gzip.decompress(CORPUS.read_bytes()))
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        for workers in map(int, arguments.workers.split(",")):
            config = config_of(file, arguments.tokenizer, workers)
            figures[workers] = compare(config, texts, arguments.tokenizer, arguments.repeats)
            row = figures[workers]
            print(
                f"workers {workers}: prepare {row['prepare_mb_per_s']:.2f} MB/s, tokenizers "
                f"{row['tokenizers_mb_per_s']:.2f} MB/s, ratio of times {row['ratio']:.3f} "
                f"({row['ratio_min']:.3f} to {row['ratio_max']:.3f})",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(figures))


def config_of(file: Path, tokenizer: Path, workers: int) -> DataConfig:
    fields = quickstart.get_config().to_dict()
    fields["data"] |= {"source": f"jsonl:{file}", "tokenizer": str(tokenizer), "workers": workers}
    return resolve(fields).data


def compare(config: DataConfig, texts: list[str], tokenizer: Path, repeats: int) -> dict:
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    pairs = [(seconds(prepare, config), seconds(tokenize, texts, tokenizer)) for _ in range(1 + repeats)][1:]
    ratios = [ours / theirs for ours, theirs in pairs]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "prepare_mb_per_s": megabytes / ours,
        "tokenizers_mb_per_s": megabytes / theirs,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def seconds(function, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def prepare(config: DataConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        preparing.prepare(dataclasses.replace(config, store=f"{folder}/store"))


def tokenize(texts: list[str], directory: Path) -> None:
    rules = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    for first in range(0, len(texts), BATCH):
        rules.encode_batch_fast(texts[first : first + BATCH], add_special_tokens=False)


if __name__ == "__main__":
    main()
