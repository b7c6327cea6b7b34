"""How even the work of context parallelism is on packed rows, and what a batch of such rows waits for.

    python -m benchmarks.context_balance [--rows=200] [--json]

Counted, not measured: a device's work is its live tiles of 512 x 512, as the plan of attention lists them. Rows are
packed behind one anchor from documents drawn with replacement from 2303 real ones (mean 2619 tokens,
benchmarks/data/linux_doc_lengths.json), the last one cut. For each layout of a row over the devices along `context`:

    contiguous, zigzag, balanced   largest over mean live tiles of the devices, mean over the rows
                                   (balanced is mesh.context_layout=documents)
    of full                        the same under the causal mask over the whole row
    batch                          the same over all devices of batches of 8 rows, one row a group of devices
    ring                           share of the C^2 pairs (queries of one device, keys of one, the same included) that
                                   have a live tile: the keys of the others must travel

Groups of devices gather weights together in each layer, so a micro-batch takes as long as its heaviest row. `waits`
says how much longer a batch takes than if all groups had the mean work: rows in the order in which they were drawn, and
in the order of the balance (`dealt`), by rows of a batch, groups and micro-batches. `rows_at_once` is one device count
with other meshes: a batch of 8 rows on 8 groups, or on fewer groups of more devices along `context` and as many more
micro-batches. `choices` are the balance and the share of pairs over 8 devices with other values of CHUNKS and SLACK
(anchorjax/data/rows/balance.py).
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from unittest import mock

import numpy as np

from anchorjax.data.rows import balance
from anchorjax.data.rows.balance import Layout, live_tiles
from anchorjax.plan.documents import loads, wait

LENGTHS, SHARDS, TILE = (2**15, 2**16, 2**17), (8, 16), 512
LAYOUTS = {"contiguous": "contiguous", "zigzag": "zigzag", "balanced": "documents"}
BATCH = 8
BATCHES = [(rows, parts) for rows, parts in itertools.product((8, 16, 32), (1, 2, 4)) if rows >= 8 * parts]
CHOICES = ((4, 0.1), (8, 0.0), (8, 0.1), (8, 0.2), (16, 0.1))  # CHUNKS, SLACK
POOL = Path(__file__).parent / "data/linux_doc_lengths.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200, help="rows of each length")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    result = {str(T): figures(T, arguments.rows) for T in LENGTHS}
    for T, of_length in result.items():
        for C in map(str, SHARDS):
            of_shards = of_length[C]
            for name in LAYOUTS:
                print(
                    f"{T:>7} tokens, {C:>2} devices, {name:>10}: {of_shards[name]:.2f}, "
                    f"of full {of_shards['full'][name]:.2f}, batch {of_shards['batch'][name]:.2f}, "
                    f"ring {of_shards['ring'][name]:.0%}, {of_shards['ms'][name]:.1f} ms a row"
                )
        for which in ("waits", "rows_at_once"):
            for name, value in of_length[which].items():
                print(f"{T:>7} tokens, {name}: {value['drawn']:.2f} as drawn, {value['dealt']:.2f} dealt")
        for name, value in of_length["choices"].items():
            print(f"{T:>7} tokens, {name}: {value['balance']:.3f}, ring {value['ring']:.0%}")
    if arguments.json:
        print(json.dumps(result))


def figures(T: int, num_rows: int) -> dict:
    """All figures of rows of T tokens."""
    rng = np.random.default_rng(0)
    rows = [draw_row(rng, T) for _ in range(num_rows)]
    work_R = np.array([live_tiles(row, TILE).sum() for row in rows])
    result = {str(C): of_shards(rows, C) for C in SHARDS}
    result["waits"] = {
        f"{B} rows, {parts} micro-batches": waits(work_R, B, 8, parts, draws=1000) for B, parts in BATCHES
    }
    result["rows_at_once"] = {
        f"{groups} groups of {64 // groups}": waits(work_R, BATCH, groups, BATCH // groups, draws=1000)
        for groups in (8, 4, 2, 1)
    }
    result["choices"] = choices(rows, 8)
    return result


def draw_row(rng: np.random.Generator, T: int) -> np.ndarray:
    """Segment ids int32 [T] of a row: an anchor, and documents of the pool in a random order."""
    pool = np.array(json.loads(POOL.read_text())["lengths"])
    lengths = rng.choice(pool, T // pool.min() + 1)
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), T - 1) + 1]
    return np.concatenate([[0], np.repeat(np.arange(1, len(lengths) + 1), lengths)])[:T].astype(np.int32)


def of_shards(rows: list[np.ndarray], C: int) -> dict:
    """The figures of all layouts over C devices along `context`."""
    result = {"batch": {}, "full": {}, "ring": {}, "ms": {}}
    T = len(rows[0])
    for name, layout_name in LAYOUTS.items():
        layout, started = Layout(layout_name, C, TILE), time.perf_counter()
        orders = [layout.order(row) for row in rows]
        result["ms"][name] = round(1000 * (time.perf_counter() - started) / len(rows), 2)
        load_RC = np.array([loads(*x, (TILE, TILE), layout) for x in zip(rows, orders, strict=True)])
        load_bBC = load_RC[: len(rows) // BATCH * BATCH].reshape(-1, BATCH, C)
        one_document = np.zeros(T, np.int32)
        full_C = loads(one_document, layout.order(one_document), (TILE, TILE), layout)
        result[name] = round(float(np.mean(load_RC.max(1) / load_RC.mean(1))), 3)
        result["batch"][name] = round(float(np.mean(load_bBC.max((1, 2)) / load_bBC.mean((1, 2)))), 3)
        result["full"][name] = round(float(full_C.max() / full_C.mean()), 3)
        result["ring"][name] = round(float(np.mean([pairs(*x, C) for x in zip(rows, orders, strict=True)])), 3)
    return result


def choices(rows: list[np.ndarray], C: int) -> dict:
    """Balance and share of pairs over C devices, by other constants of the layout."""
    result = {}
    for chunks, slack in CHOICES:
        layout = Layout("documents", C, TILE)
        with mock.patch.multiple(balance, CHUNKS=chunks, SLACK=slack):
            orders = [layout.order(row) for row in rows]
        load_RC = np.array([loads(*x, (TILE, TILE), layout) for x in zip(rows, orders, strict=True)])
        result[f"{chunks} chunks, slack {slack}"] = {
            "balance": round(float(np.mean(load_RC.max(1) / load_RC.mean(1))), 3),
            "ring": round(float(np.mean([pairs(*x, C) for x in zip(rows, orders, strict=True)])), 3),
        }
    return result


def pairs(segment_ids_T: np.ndarray, order_T: np.ndarray, C: int) -> float:
    """The share of pairs of devices with a live tile: a document in both, and one of its keys before a query."""
    device_T = np.empty(len(order_T), np.int64)
    device_T[order_T] = np.repeat(np.arange(C), len(order_T) // C)
    starts = np.flatnonzero(np.diff(segment_ids_T, prepend=-1) | np.diff(device_T, prepend=-1))
    live_CC = np.zeros((C, C), bool)
    for segment in np.unique(segment_ids_T[starts]):
        devices = device_T[starts[segment_ids_T[starts] == segment]].tolist()
        for number, query in enumerate(devices):
            live_CC[query, devices[: number + 1]] = True
    return float(live_CC.mean())


def waits(work_R: np.ndarray, B: int, groups: int, parts: int, draws: int) -> dict[str, float]:
    """Time of a batch over that of even work, mean over batches of B rows drawn from `work_R`."""
    rng = np.random.default_rng(1)
    layout = Layout(groups=groups, parts=parts)
    times = {"drawn": [], "dealt": []}
    for _ in range(draws):
        work_B = rng.choice(work_R, B, replace=False)
        for name, order_B in (("drawn", np.arange(B)), ("dealt", layout.order_of_rows(work_B))):
            times[name].append(wait(work_B[order_B], layout))
    return {name: round(float(np.mean(of)), 3) for name, of in times.items()}


if __name__ == "__main__":
    main()
