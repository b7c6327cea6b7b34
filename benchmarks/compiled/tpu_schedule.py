"""How close attention kernels come to what a TPU's units allow, by the schedules that its compiler makes.

    python -m benchmarks.compiled.tpu_schedule [--targets=v5e,v5p,v6e] [--tiles=512x512,...] [--json]
    python -m benchmarks.compiled.tpu_schedule --constants [--targets=v4,v5e,v5p,v6e,tpu7x]

Compiled here and never run. For every TPU generation: the bundles (issue slots, about one a cycle) that compute one
tile, forward and backward, of `pallas_tpu`, of jax's splash attention (causal, segment ids, fused backward) and of
tokamax's (causal with segment ids, for which it must be 0.0.17; and with the anchor's rule), bf16, head width 128.
Bundles are held against the bound of the matrix unit, as max(bundles, bound) / bound; each kernel at its best tile, the
one with the fewest cycles a score. Ours is also given at its default tile. `unit` names what binds: the larger of the
MXU's bound, with as much of it filled as a head of width 128 can, and the vector units' (4 operations a bundle, 1
exponential).
With `--constants` it prints the table of anchorjax/plan/tiles.py, ours at the default tiles, and compiles no other.
The compilers: requirements-compilers.txt. About a minute for each tile and generation on two cores.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from anchorjax import targets
from anchorjax.attention import pallas_tpu
from anchorjax.plan.tiles import Cost
from benchmarks.compiled import peers, schedules

TILES = "512x512,1024x512,512x1024,1024x1024"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="v5e,v5p,v6e", help="TPU generations, comma separated")
    parser.add_argument("--tiles", default=TILES, help="query tile x key tile, comma separated")
    parser.add_argument("--kernels", default="ours,jax_splash,tokamax_splash,tokamax_anchor", help="comma separated")
    parser.add_argument("--constants", action="store_true", help="print the planner's table of tiles, and nothing else")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    if arguments.constants:
        return show_constants(arguments.targets.split(","))
    tiles = [tuple(map(int, tile.split("x"))) for tile in arguments.tiles.split(",")]
    kernels = arguments.kernels.split(",")
    if "tokamax_splash" in kernels:
        kernels = _without_what_is_too_old(kernels)
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        targets.prepare(dump_to=directory)  # before anything is compiled
        for target in arguments.targets.split(","):
            results[target] = measure(Path(directory), target, tiles, kernels)
    if arguments.json:
        print(json.dumps(results))


def show_constants(names: list[str]) -> None:
    """One entry of `tiles.COST` for each target."""
    with tempfile.TemporaryDirectory() as directory:
        targets.prepare(dump_to=directory)
        for target in names:
            tile = pallas_tpu.default_tiles(target)
            print(f"{(target, *tile)}: {constants(Path(directory), target, tile)},", flush=True)


def constants(directory: Path, target: str, tile: schedules.Tiles) -> dict[str, Cost]:
    """The planner's cost of a tile, compiled into `directory`, which `targets.prepare` dumps to."""
    return {
        which: Cost(
            max(schedule.bodies[0].bundles, schedules.mxu_bound(target, which, tile)),
            max(schedule.bodies[-1].bundles, schedules.mxu_bound(target, which, tile)),
            schedule.per_step,
            schedule.per_stretch,
        )
        for which, schedule in schedules.ours(directory, target, tile).items()
    }


def _without_what_is_too_old(kernels: list[str]) -> list[str]:
    """All of them where tokamax prunes by segment ids; else the others, and a line that says so."""
    try:
        peers.require_pruning()
    except NotImplementedError as error:
        print(f"tokamax_splash is left out: {error}", file=sys.stderr)
        return [kernel for kernel in kernels if kernel != "tokamax_splash"]
    return kernels


def measure(directory: Path, target: str, tiles: list, kernels: list[str]) -> dict:
    """All figures of one TPU generation; see `summarise` for the keys."""
    makers = {
        "ours": lambda tile: schedules.ours(directory, target, tile),
        "jax_splash": lambda tile: schedules.peer(directory, target, peers.jax_splash, tile),
        "tokamax_splash": lambda tile: schedules.peer(directory, target, peers.tokamax_splash, tile),
        "tokamax_anchor": lambda tile: schedules.peer(directory, target, peers.tokamax_anchor, tile),
    }
    result = {}
    for kernel in kernels:
        found = {}
        for tile in tiles:
            found[tile] = makers[kernel](tile)
            show(target, kernel, tile, found[tile])
        result |= summarise(target, kernel, found)
    return result


def show(target: str, kernel: str, tile, both: dict) -> None:
    """One line for each pass: bundles without and with a mask, and the bounds."""
    for which, schedule in both.items():
        bound = schedules.mxu_bound(target, which, tile)
        bodies = (f"{body.bundles} (vector bound {schedules.vector_bound(body):.0f})" for body in schedule.bodies)
        print(
            f"{target}  {kernel:14}  {which:8}  {tile[0]:>4} x {tile[1]:<4}  MXU bound {bound:>6.0f}  "
            f"bundles {', '.join(bodies)}  a step {schedule.per_step}  a stretch {schedule.per_stretch}",
            flush=True,
        )


def summarise(target: str, kernel: str, found: dict) -> dict:
    """The kernel's keys of the JSON line.

    `forward` and `backward`, with the kernel's name in front for peers, are multiples of the MXU bound of the tile's
    body without a mask, at the kernel's best tile; ours at its default tile. Beside them: `_masked` (the same for the
    body with one), `_tile`, `_bundles`, `_bundles_per_score`, the bounds in cycles and `_unit`; ours also `best_...`.
    """

    result = {}
    for which in schedules.PASSES:

        def cycles_per_score(tile, which=which):
            cycles = max(found[tile][which].bodies[0].bundles, schedules.mxu_bound(target, which, tile))
            return cycles / (tile[0] * tile[1])

        best = min(found, key=cycles_per_score)
        if kernel != "ours":
            result |= figures(target, which, best, found[best][which], f"{kernel}_{which}")
            continue
        default = pallas_tpu.default_tiles(target)
        result |= figures(target, which, best, found[best][which], f"best_{which}")
        if default in found:
            result |= figures(target, which, default, found[default][which], which)
    return result


def figures(target: str, which: str, tile, schedule, name: str) -> dict:
    bound, body = schedules.mxu_bound(target, which, tile), schedule.bodies[0]
    filled, vector = schedules.mxu_filled_bound(target, which, tile), schedules.vector_bound(body)
    return {
        name: max(body.bundles, bound) / bound,
        f"{name}_masked": max(schedule.bodies[-1].bundles, bound) / bound,
        f"{name}_tile": f"{tile[0]}x{tile[1]}",
        f"{name}_bundles": body.bundles,
        f"{name}_bundles_per_score": body.bundles / (tile[0] * tile[1]),
        f"{name}_mxu_bound": bound,
        f"{name}_mxu_filled_bound": filled,
        f"{name}_vector_bound": vector,
        f"{name}_unit": "MXU" if filled >= vector else "vector",
    }


if __name__ == "__main__":
    main()
