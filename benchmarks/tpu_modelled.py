"""Modelled cycles of attention on packed rows: ours against splash attention with segment ids, and against `full`.

    python benchmarks/tpu_modelled.py [--targets=v5e,v5p,v6e] [--tiles=512x512,...] [--json]

Nothing is run on a TPU. The kernels are compiled here, their schedules counted (schedules.py), and the tiles of every
row counted by the real plan. A pass over one head of a row is modelled as

    tiles x max(bundles of the body, MXU bound) + tiles x bundles of a step + stretches x bundles of start and end

with the bodies with and without a mask apart. What it leaves out: waiting for memory, and everything but attention.
Splash attention computes every tile of the causal triangle, whatever the segment ids; its grid steps above the diagonal
are counted free, and each of its passes takes the tile that suits it best. Ours takes its default tile.

Rows are packed behind one anchor from documents drawn with replacement, the last one cut, 20 rows of each length:
    linux       2303 real documents, mean 2619 tokens (linux_doc_lengths.json)
    log_normal  mean 1060 and sigma 1.3, cut at 16 below: SlimPajama's mean (627e9 tokens in 590e6 documents)
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, without installing

import jax
import numpy as np

from anchorjax import targets
from anchorjax.attention.plan import NEEDS_MASK, make_plan, unpack
from anchorjax.attention.tiles import default_tiles
from anchorjax.masks import Mask
from benchmarks import peers
from benchmarks import schedules as schedules_lib

LENGTHS = (2**15, 2**16, 2**17)
ROWS = 20
POOLS = ("linux", "log_normal")
DEFAULT = ("v5e", "linux")  # whose ratios stand at the top of the JSON line
TILES = "512x512,1024x512,512x1024,1024x1024"


@dataclasses.dataclass(frozen=True)
class Tally:
    """Tiles of some rows by their kind, and how many query (key) tiles the rows have."""

    whole: int
    masked: int
    q_tiles: int
    kv_tiles: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="v5e,v5p,v6e", help="TPU generations, comma separated")
    parser.add_argument("--tiles", default=TILES, help="query tile x key tile, comma separated")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    tiles = [tuple(map(int, tile.split("x"))) for tile in arguments.tiles.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        targets.prepare(dump_to=directory)  # before anything is compiled
        schedules = {target: compile_all(Path(directory), target, tiles) for target in arguments.targets.split(",")}
    results = {str(length): compare_all(length, schedules, tiles) for length in LENGTHS}
    if arguments.json:
        print(json.dumps(results))


def compile_all(directory: Path, target: str, tiles: list) -> dict[str, dict]:
    return {
        "ours": {tile: schedules_lib.ours(directory, target, tile) for tile in tiles},
        "splash": {tile: schedules_lib.peer(directory, target, peers.jax_splash, tile) for tile in tiles},
    }


def compare_all(length: int, schedules: dict, tiles: list) -> dict:
    """Ratios by generation and pool, each with our modelled cycles by tile; the default's in front."""
    tallies = {pool: {tile: tally(rows(pool, length), *tile) for tile in tiles} for pool in POOLS}
    full = {tile: tally(np.ones((ROWS, length), np.int32), *tile, anchors=0) for tile in tiles}
    result = {}
    for target, kernels in schedules.items():
        result[target] = {pool: compare(target, kernels, tallies[pool], full) for pool in POOLS}
        for pool, figures in result[target].items():
            by_tile = "  ".join(f"{tile} {cycles:.3g}" for tile, cycles in figures["cycles_by_tile"].items())
            print(
                f"{length:>6}  {target}  {pool:10}  {figures['vs_splash_segments']:>5.2f} x fewer than splash  "
                f"{figures['vs_full']:>5.2f} x fewer than full  tile {figures['tile']}  cycles a row: {by_tile}",
                flush=True,
            )
    target, pool = DEFAULT
    chosen = result.get(target, {}).get(pool, {})
    return {key: chosen[key] for key in ("vs_splash_segments", "vs_full") if key in chosen} | result


def compare(target: str, kernels: dict, tallies: dict, full: dict) -> dict:
    """How many times fewer cycles than splash attention and than the full causal mask; ours at its default tile."""
    ours = {
        tile: sum(cycles(target, kernels["ours"], which, tile, tallies[tile]) for which in schedules_lib.PASSES)
        for tile in full
    }
    splash = sum(
        min(cycles(target, kernels["splash"], which, tile, full[tile]) for tile in full)
        for which in schedules_lib.PASSES
    )
    # The tile that suits the full mask best may be another than the default: it gets that one.
    whole = min(
        sum(cycles(target, kernels["ours"], which, tile, full[tile]) for which in schedules_lib.PASSES) for tile in full
    )
    tile = default_tiles("pallas_tpu", target)
    tile = tile if tile in full else min(ours, key=ours.get)
    return {
        "vs_splash_segments": splash / ours[tile],
        "vs_full": whole / ours[tile],
        "tile": f"{tile[0]}x{tile[1]}",
        "cycles_by_tile": {f"{q}x{kv}": count / ROWS for (q, kv), count in ours.items()},
        "live_tiles": (tallies[tile].whole + tallies[tile].masked) / ROWS,
        "masked_tiles": tallies[tile].masked / ROWS,
        "causal_tiles": (full[tile].whole + full[tile].masked) / ROWS,
    }


def cycles(target: str, schedules: dict, which: str, tile, tally: Tally) -> float:
    """Modelled cycles of one pass over one head of all rows."""
    schedule, bound = schedules[tile][which], schedules_lib.mxu_bound(target, which, tile)
    bodies = max(schedule.bodies[0].bundles, bound), max(schedule.bodies[-1].bundles, bound)
    stretches = tally.q_tiles if which == "forward" else tally.kv_tiles
    steps = (tally.whole + tally.masked) * schedule.per_step
    return tally.whole * bodies[0] + tally.masked * bodies[1] + steps + stretches * schedule.per_stretch


def rows(pool: str, length: int) -> np.ndarray:
    """Segment ids [ROWS, length]: an anchor, then documents."""
    rng = np.random.default_rng(0)
    lengths = json.loads(Path(__file__).with_name("linux_doc_lengths.json").read_text())["lengths"]
    sigma = 1.3

    def draw():
        if pool == "linux":
            return rng.choice(lengths)
        return max(16, round(rng.lognormal(np.log(1060) - sigma**2 / 2, sigma)))

    segment_ids = np.zeros((ROWS, length), np.int32)
    for row in segment_ids:
        start, document = 1, 0
        while start < length:
            document, end = document + 1, start + draw()
            row[start:end] = document
            start = end
    return segment_ids


def tally(segment_ids: np.ndarray, q_tile: int, kv_tile: int, anchors: int = 1) -> Tally:
    """The tiles that a kernel visits, by the plan itself."""

    @jax.jit
    def visits(row_1T):
        return make_plan(Mask.from_segments(row_1T, anchors), q_tile, kv_tile).by_query

    visited = masked = 0
    for row in segment_ids:
        listed = visits(row[None])
        for entries, (count,) in zip(np.array(listed.entries_CP), np.array(listed.counts_C1), strict=True):
            _, _, flags = unpack(entries[:count])
            visited += int(count)
            masked += int(np.sum(flags & NEEDS_MASK != 0))
    count, length = segment_ids.shape
    return Tally(visited - masked, masked, count * -(-length // q_tile), count * -(-length // kv_tile))


if __name__ == "__main__":
    main()
