"""What a window schedule leaves of attention's work, by schedule and rounding of the windows.

    python -m benchmarks.data.window_schedule [--json]

Counted, not measured: live pairs and live tiles on average over a run, as shares of those of the same rows without a
schedule. Windows grow from 32 tokens in the first 65% of the steps (SkyLadder's 1/8 token a step: 65,280 of 100,000 for
8192 tokens). Rows are one document, or documents drawn with replacement from 2303 real ones (mean 2619 tokens,
benchmarks/data/linux_doc_lengths.json) behind one anchor, the last one cut.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from anchorjax.config import DataConfig
from anchorjax.data.rows import segments, window_schedule
from anchorjax.data.rows.balance import live_tiles
from anchorjax.types import WINDOW_SCHEDULES

T, TILES, STEPS, CLIMB = 8192, (256, 512), 400, 0.65
MULTIPLES = (1, 128, 512)
POOL = Path(__file__).parent / "linux_doc_lengths.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    kinds = {"one document": [np.zeros(T, np.int32)] * STEPS, "documents": packed_rows()}
    result = {}
    for (kind, rows), name, multiple in itertools.product(kinds.items(), WINDOW_SCHEDULES[1:], MULTIPLES):
        keys = {"window_schedule": name, "window_steps": int(CLIMB * STEPS), "window_multiple": multiple}
        found = result[f"{kind}, {name}, {multiple}"] = share(DataConfig(seq_len=T, **keys), rows)
        told = "  ".join(f"{what} {value:.1%}" for what, value in found.items())
        print(f"{kind:<13} {name:<12} multiple {multiple:>4}  {told}")
    if arguments.json:
        print(json.dumps(result))


def packed_rows() -> list[np.ndarray]:
    """Segment ids of rows of documents, one a step: int32 [T] each."""
    rng, pool = np.random.default_rng(0), np.array(json.loads(POOL.read_text())["lengths"])
    most = T // pool.min() + 1
    rows = []
    for _ in range(STEPS):
        numbers = np.repeat(np.arange(1, most + 1), rng.choice(pool, most))
        rows.append(np.concatenate([[0], numbers[: T - 1]]).astype(np.int32))
    return rows


def share(config: DataConfig, rows: list[np.ndarray]) -> dict[str, float]:
    """Pairs, and tiles by their side, over those of whole rows; row s is of step s."""
    scheduled = sum(work(segments.cut(row, window_schedule.window(step, config) or T)) for step, row in enumerate(rows))
    return dict(zip(("pairs", *map(str, TILES)), (scheduled / sum(map(work, rows))).tolist(), strict=True))


def work(ids_T: np.ndarray) -> np.ndarray:
    """Live pairs, anchors left out, and live tiles by their side."""
    pairs = segments.visible(ids_T, num_anchors=0).sum(dtype=np.int64)
    return np.array([pairs, *(live_tiles(ids_T, tile).sum() for tile in TILES)])


if __name__ == "__main__":
    main()
