"""Modelled cycles of attention on packed rows: ours against splash attention with segment ids, and against `full`.

    python -m benchmarks.compiled.tpu_modelled [--targets=v5e,v5p,v6e] [--tiles=512x512,...] [--json]

Nothing is run on a TPU. The kernels are compiled here, their schedules counted (schedules.py), and the tiles of every
row counted by the real plan. A pass over one head of a row is modelled as

    tiles x max(bundles of the body, MXU bound) + tiles x bundles of a step + stretches x bundles of start and end

with the bodies with and without a mask apart. What it leaves out: waiting for memory, and everything but attention.
jax's splash attention computes every tile of the causal triangle, whatever the segment ids; its grid steps above the
diagonal are counted free, and each of its passes takes the tile that suits it best. Ours takes its default tile.

tokamax's splash attention (0.0.17; an older one is left out, and a line says so) computes the causal tiles whose ranges
of segment ids meet, each pass again at the tile that suits it best. Against it whole layers are modelled, with what XLA
does around the kernels, as its own cost model estimates it for HEADS heads and [T, N, H] arrays on both sides: moving
heads to the front, the three slots of tokamax's dq and their sum, tokamax's lists of tiles (in both passes of every
layer, at tiles of 1024, where they are shortest), our anchor's share, and our plan (once for all LAYERS). The sorts in
each set-up have no estimate and are free.
    vs_tokamax            the same rows: the anchor is then a document of one token, which nobody else sees
    vs_tokamax_copied     a copy of the anchor in front of every document, as in the paper; by document token
    vs_tokamax_of_4       four rows of a device under `vmap`, which makes tokamax compute the union of their tiles

Rows are packed behind one anchor from documents drawn with replacement, the last one cut, 20 rows of each length:
    linux        2303 real documents, mean 2619 tokens (linux_doc_lengths.json)
    log_normal   mean 1060 and sigma 1.3, cut at 16 below: SlimPajama's mean (627e9 tokens in 590e6 documents)
    interleaved  those of linux, each cut into up to three pieces that are mixed in the row (`data.interleave`)
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax import targets
from anchorjax.attention import attention, pallas_tpu
from anchorjax.attention.plan import NEEDS_MASK, make_plan, unpack
from anchorjax.data.rows.row_plan import Pieces, interleave
from anchorjax.masks import Mask
from benchmarks.compiled import peers
from benchmarks.compiled import schedules as schedules_lib

LENGTHS = (2**15, 2**16, 2**17)
ROWS = 20
POOLS = ("linux", "log_normal", "interleaved")
DEFAULT = ("v5e", "linux")  # whose ratios stand at the top of the JSON line
TILES = "512x512,1024x512,512x1024,1024x1024"
HEADS, LAYERS = 8, 32  # Llama-2-7B, with its heads on four devices
TOGETHER = 4  # rows of a device under `vmap`
_SET_UP_TILE = (1024, 1024)


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
        prunes = tokamax_prunes()
        schedules = {t: compile_all(Path(directory), t, tiles, prunes) for t in arguments.targets.split(",")}
        results = {str(length): compare_all(length, schedules, tiles) for length in LENGTHS}
    if arguments.json:
        print(json.dumps(results))


def tokamax_prunes() -> bool:
    """Says so in one line if it does not."""
    try:
        peers.require_pruning()
    except NotImplementedError as error:
        print(f"tokamax is left out: {error}", file=sys.stderr)
        return False
    return True


def compile_all(directory: Path, target: str, tiles: list, prunes: bool) -> dict[str, dict]:
    kernels = {"splash": peers.jax_splash} | ({"tokamax": peers.tokamax_splash} if prunes else {})
    return {"ours": {tile: schedules_lib.ours(directory, target, tile) for tile in tiles}} | {
        name: {tile: schedules_lib.peer(directory, target, kernel, tile) for tile in tiles}
        for name, kernel in kernels.items()
    }


def compile_outside(target: str, length: int, q_tile: int, kv_tile: int) -> dict[str, int]:
    """Cycles of one layer and row outside of the kernels, by XLA's estimate: `ours`, `tokamax`; `set_up` of those."""
    segment_ids = jax.ShapeDtypeStruct((length,), jnp.int32)
    heads = [jax.ShapeDtypeStruct((1, length, HEADS, schedules_lib.WIDTH), jnp.bfloat16)] * 3

    def plan(segment_ids_T):
        return make_plan(Mask.from_segments(segment_ids_T[None], 1), q_tile, kv_tile)

    def ours(q, k, v, plan):
        return gradients(lambda *qkv: attention(*qkv, plan, implementation="pallas_tpu"), q, k, v)

    def tokamax(q, k, v, segment_ids_T):
        def attend(*qkv):
            return peers.tokamax_splash(*(x[0].swapaxes(0, 1) for x in qkv), segment_ids_T, *_SET_UP_TILE)

        return gradients(attend, q, k, v)

    def pruned(segment_ids_T):
        return [peers.tokamax_pruned(segment_ids_T, *_SET_UP_TILE, which) for which in schedules_lib.PASSES]

    def cycles_of(program, *shapes):
        return schedules_lib.outside_kernels(target, program, shapes)

    our_plan = cycles_of(plan, segment_ids)
    return {
        "ours": cycles_of(ours, *heads, jax.eval_shape(plan, segment_ids)) + our_plan / LAYERS,
        "tokamax": cycles_of(tokamax, *heads, segment_ids),
        "plan": our_plan,
        "set_up": cycles_of(pruned, segment_ids),
    }


def gradients(attend, q, k, v):
    return jax.grad(lambda *qkv: jnp.sum(attend(*qkv).astype(jnp.float32)), (0, 1, 2))(q, k, v)


def compare_all(length: int, schedules: dict, tiles: list) -> dict:
    """Ratios by generation and pool, each with our modelled cycles by tile; the default's in front."""
    tallies = {pool: {tile: tally(rows(pool, length), *tile) for tile in tiles} for pool in POOLS}
    full = {tile: tally(np.ones((ROWS, length), np.int32), *tile, anchors=0) for tile in tiles}
    result = {}
    for target, kernels in schedules.items():
        result[target] = {pool: compare(target, kernels, tallies[pool], full) for pool in POOLS}
        if "tokamax" in kernels:
            outside = compile_outside(target, length, *pallas_tpu.default_tiles(target))
            for pool, figures in result[target].items():
                figures |= compare_tokamax(target, kernels["tokamax"], figures, pool, length, outside)
        for pool, figures in result[target].items():
            by_tile = "  ".join(f"{tile} {cycles:.3g}" for tile, cycles in figures["cycles_by_tile"].items())
            print(
                f"{length:>6}  {target}  {pool:10}  {figures['vs_splash_segments']:>5.2f} x fewer than splash  "
                f"{figures['vs_full']:>5.2f} x fewer than full  tile {figures['tile']}  cycles a row: {by_tile}",
                flush=True,
            )
            if "vs_tokamax" in figures:
                print("        " + "  ".join(f"{key} {figures[key]:.3g}" for key in TOKAMAX), flush=True)
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
    tile = pallas_tpu.default_tiles(target)
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


TOKAMAX = ("vs_tokamax", "vs_tokamax_kernels", "vs_tokamax_copied", f"vs_tokamax_of_{TOGETHER}")
TOKAMAX += ("tokamax_tiles", "tokamax_outside", "our_outside", "tokamax_set_up", "our_plan")  # the last of a row


def compare_tokamax(target: str, kernels: dict, our_figures: dict, pool: str, length: int, outside: dict) -> dict:
    """How many times fewer cycles a layer than tokamax's; shares of the cycles outside of kernels, and of set-up."""

    def modelled(segment_ids, together=1):
        """Cycles of a row and head in kernels, each pass at its best tile, and the tiles of the forward pass."""
        tallies = {tile: pruned(segment_ids, *tile, together) for tile in kernels}
        found = [
            min((cycles(target, kernels, which, tile, tallies[tile]) / ROWS, tile) for tile in kernels)
            for which in schedules_lib.PASSES
        ]
        forward = tallies[found[0][1]]
        return sum(count for count, _ in found), (forward.whole + forward.masked) / ROWS

    def layer(kernel_cycles, who="tokamax"):
        return HEADS * kernel_cycles + outside[who]

    here = rows(pool, length)
    copied = rows(pool, length, copied=True)
    by_token = (length - 1) / (length - copied.max(axis=1).mean())
    ours = our_figures["cycles_by_tile"][our_figures["tile"]]
    plain, tiles = modelled(here)
    return {
        "vs_tokamax": layer(plain) / layer(ours, "ours"),
        "vs_tokamax_kernels": plain / ours,
        "vs_tokamax_copied": layer(modelled(copied)[0]) * by_token / layer(ours, "ours"),
        f"vs_tokamax_of_{TOGETHER}": layer(modelled(here, TOGETHER)[0]) / layer(ours, "ours"),
        "tokamax_tiles": tiles,
        "tokamax_outside": outside["tokamax"] / layer(plain),
        "our_outside": outside["ours"] / layer(ours, "ours"),
        "tokamax_set_up": outside["set_up"] / layer(plain),
        "our_plan": outside["plan"] / LAYERS / layer(ours, "ours"),
    }


def cycles(target: str, schedules: dict, which: str, tile, tally: Tally) -> float:
    """Modelled cycles of one pass over one head of all rows."""
    schedule, bound = schedules[tile][which], schedules_lib.mxu_bound(target, which, tile)
    bodies = max(schedule.bodies[0].bundles, bound), max(schedule.bodies[-1].bundles, bound)
    stretches = tally.q_tiles if which == "forward" else tally.kv_tiles
    steps = (tally.whole + tally.masked) * schedule.per_step
    return tally.whole * bodies[0] + tally.masked * bodies[1] + steps + stretches * schedule.per_stretch


def rows(pool: str, length: int, copied: bool = False) -> np.ndarray:
    """Segment ids [ROWS, length]: an anchor, then documents; with copies, each document has its own in front."""
    rng = np.random.default_rng(0)
    lengths = json.loads((Path(__file__).resolve().parents[1] / "data/linux_doc_lengths.json").read_text())["lengths"]
    sigma = 1.3

    def draw():
        if pool == "log_normal":
            return max(16, round(rng.lognormal(np.log(1060) - sigma**2 / 2, sigma)))
        return rng.choice(lengths)

    segment_ids = np.zeros((ROWS, length), np.int32)
    for number, row in enumerate(segment_ids):
        start, document = int(not copied), 0
        while start < length:
            document, end = document + 1, start + draw() + int(copied)
            row[start:end] = document
            start = end
        if pool == "interleaved":
            row[int(not copied) :] = _interleaved(row[int(not copied) :], number)
    return segment_ids


def _interleaved(segment_ids: np.ndarray, row: int) -> np.ndarray:
    documents, lengths = np.unique(segment_ids, return_counts=True)
    pieces = interleave(Pieces(documents, np.zeros_like(lengths), lengths), 3, 0, row)
    return np.repeat(pieces[0], pieces[2])


def pruned(segment_ids: np.ndarray, q_tile: int, kv_tile: int, together: int = 1) -> Tally:
    """The tiles that tokamax visits: causal ones whose ranges of ids meet in one of the rows that share its list."""
    count, length = segment_ids.shape

    def ranges(tile):
        tiles = segment_ids.reshape(count, length // tile, tile)
        return tiles.min(axis=2), tiles.max(axis=2)

    (q_low, q_high), (kv_low, kv_high) = ranges(q_tile), ranges(kv_tile)
    meet = (q_high[:, :, None] >= kv_low[:, None]) & (kv_high[:, None] >= q_low[:, :, None])
    meet = meet.reshape(count // together, together, *meet.shape[1:]).any(axis=1)
    q_first, kv_first = np.arange(0, length, q_tile)[:, None], np.arange(0, length, kv_tile)
    visited = meet & (kv_first <= q_first + q_tile - 1)
    whole = visited & (kv_first + kv_tile - 1 <= q_first)
    visited, whole = (together * int(x.sum()) for x in (visited, whole))
    return Tally(whole, visited - whole, count * (length // q_tile), count * (length // kv_tile))


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
