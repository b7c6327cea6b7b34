"""What it costs to show that a tokenizer loses nothing: at each load, and for each megabyte that is prepared.

    python -m benchmarks.data.tokenizer_check --tokenizer=checkpoints/SmolLM2-135M-Instruct [--json]

The load is timed whole and without its round trips (`data/text/round_trip.py`). Then losses are looked for in the
shipped text, document by document as a preparation does, beside tokenizing it. Medians of `--repeats`; a first
round is not counted.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from anchorjax.data.sources import public_domain
from anchorjax.data.text import round_trip, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, type=Path, help="a Hugging Face directory")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    loaded = tokenizer.load(str(arguments.tokenizer))
    texts = [document["text"] for held_out in (False, True) for _, document in public_domain.read(held_out)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6

    def load() -> None:
        tokenizer.load(str(arguments.tokenizer))

    def load_without() -> None:
        with mock.patch.object(round_trip, "check"):
            load()

    figures = {
        "load_s": median(load, arguments.repeats),
        "load_without_s": median(load_without, arguments.repeats),
        "lost_ms_per_mb": 1e3 * median(lambda: [loaded.lost(text) for text in texts], arguments.repeats) / megabytes,
        "encode_ms_per_mb": 1e3 * median(lambda: loaded.encode_batch(texts), min(3, arguments.repeats)) / megabytes,
        "characters_lost": sum(sum(loaded.lost(text).values()) for text in texts),
    }
    print(
        f"load {figures['load_s']:.3f} s, without round trips {figures['load_without_s']:.3f} s; of a megabyte: losses "
        f"{figures['lost_ms_per_mb']:.2f} ms, tokens {figures['encode_ms_per_mb']:.0f} ms; lost "
        f"{figures['characters_lost']} of {megabytes:.1f} MB"
    )
    if arguments.json:
        print(json.dumps(figures))


def median(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
