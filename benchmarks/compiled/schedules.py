"""Schedules that the TPU compiler made of attention kernels: compiled on any machine, counted here, never run.

libtpu dumps what it schedules: bundles of instructions, about one a cycle, in numbered regions, and how many slots
of each unit every bundle fills. A kernel's *body* is the region that computes one tile; it is known by its number of
matrix instructions. Counts of bundles miss waiting, for memory and for a busy matrix unit, so a tile's cycles are
modelled as max(bundles of its body, bound of the matrix unit).
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from anchorjax import targets
from anchorjax.attention.pallas_tpu import backward, forward
from anchorjax.attention.pallas_tpu.arrays import Arrays
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask
from anchorjax.plan.tiles import FLOPS_PER_CYCLE, MATMULS, PASSES, WIDTH
from benchmarks.compiled import peers

# Rows long enough that no array of them fits into VMEM, as in training: 32 MB and more each. One long row is quick to
# compile; splash attention lists a causal row's tiles on the host, and takes eight heads of a shorter one instead.
T = 2**17
PEER_HEADS, PEER_T = 8, 2**15
UNIT = {"v4": 128, "v5e": 128, "v5p": 128, "v6e": 256, "tpu7x": 256}  # rows and columns of one matrix unit
_ROWS = 16  # of bf16 that one matrix instruction streams through it

Tiles = tuple[int, int]  # query tile, key tile


class BadDump(Exception):
    """The compiler's dump is not what this module knows how to read."""


@dataclasses.dataclass(frozen=True)
class Body:
    """One way to compute a tile: its bundles, and slots used by unit (`VALU`, `EUP`, ...)."""

    bundles: int
    slots: Counter


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One kernel's schedule.

    Attributes:
      bodies: by vector operations; with two of them, the tile without a mask and the one with.
      per_step: bundles of a grid step outside of the bodies that use scalar slots only: loop, copies, semaphores.
      per_stretch: other bundles outside, which run when a query tile (or, backward, a key tile) starts and ends.
    """

    bodies: tuple[Body, ...]
    per_step: int
    per_stretch: int


def mxu_bound(target: str, which: str, tiles: Tiles) -> float:
    """Cycles that one tile's multiplications take at the matrix units' peak."""
    return MATMULS[which] * 2 * tiles[0] * tiles[1] * WIDTH / FLOPS_PER_CYCLE[target]


def mxu_filled_bound(target: str, which: str, tiles: Tiles) -> float:
    """The same with the units filled as the head's width allows: 128 is half of a v6e unit's side, so twice the bound.

    A unit takes 16 rows in 16 cycles (v5e, v5p: 4 units) or in 8 (v6e: 2 units): 4 cycles an instruction in both.
    """
    return 4.0 * matrix_instructions(target, which, tiles)


def vector_bound(body: Body) -> float:
    """Cycles that a body's vector work takes: 4 vector operations a bundle, and 1 exponential."""
    return max(body.slots["VALU"] / 4, body.slots["EUP"])


def matrix_instructions(target: str, which: str, tiles: Tiles, fp32_weights: bool = False) -> int:
    """How many matrix instructions one tile takes: each streams 16 rows past one unit's worth of weights.

    Products over the head (scores) have UNIT-wide pieces of the key side as weights, once; sums over a side of the
    tile have that side cut to pieces, once for each UNIT of the head's width.

    Args:
      fp32_weights: of the forward pass: the kernel multiplies p with v in fp32 registers, of half as many rows.
    """
    q_tile, kv_tile = tiles
    unit = UNIT[target]
    of_head = -(-WIDTH // unit)
    scores, by_key, by_query = (
        rows // _ROWS * -(-side // unit) * of_head
        for rows, side in ((q_tile, kv_tile), (q_tile, kv_tile), (kv_tile, q_tile))
    )
    # Forward: scores, and p v summed over keys. Backward keeps keys in front: two of scores, dk and dv summed over
    # queries, dq over keys.
    if which == "forward":
        return scores + by_key * (2 if fp32_weights else 1)
    return 4 * by_query + by_key


def read(bundles_file: Path, instructions: int) -> Schedule:
    """Parses a `*-final_bundles.txt` and the utilization table beside it.

    Args:
      instructions: of the matrix units that one body holds.

    Raises:
      BadDump: no such body, more than two, or files that do not fit each other.
    """
    bundles = _bundles(bundles_file)
    slots = _slots(bundles_file, len(bundles))
    matmuls = [len(re.findall(r"\bvmatmul\.", text)) for text in bundles]
    regions = _regions(bundles)
    bodies = _bodies(regions, matmuls, instructions)
    if not 1 <= len(bodies) <= 2:
        counts = sorted({sum(matmuls[start:end]) for start, end in regions}, reverse=True)
        raise BadDump(f"{bundles_file.name}: {len(bodies)} bodies of {instructions} matmuls; regions have {counts[:8]}")
    inside = {n for start, end in bodies for n in range(start, end)}
    outside = [row for n, row in enumerate(slots) if n not in inside]
    scalar_only = sum(all(count == 0 for unit, count in row.items() if unit != "SALU") for row in outside)
    bodies = [Body(end - start, sum(slots[start:end], Counter())) for start, end in bodies]
    return Schedule(
        tuple(sorted(bodies, key=lambda body: body.slots["VALU"])),
        per_step=scalar_only,
        per_stretch=len(outside) - scalar_only,
    )


def _bodies(regions, matmuls, instructions) -> set[tuple[int, int]]:
    """The regions with exactly this many matrix instructions.

    With a body for each kind of tile: the outermost such regions, so that what a body does conditionally counts.
    With one body the outermost is the whole kernel: then the innermost.
    """
    candidates = [region for region in regions if sum(matmuls[slice(*region)]) == instructions]
    outermost = {r for r in candidates if not any(_holds(other, r) for other in candidates)}
    if len(outermost) == 1:
        return {r for r in candidates if not any(_holds(r, other) for other in candidates)}
    return outermost


def _holds(outer, inner) -> bool:
    return outer != inner and outer[0] <= inner[0] and inner[1] <= outer[1]


def _bundles(file: Path) -> list[str]:
    """The lines that are bundles; their addresses must count up by one."""
    found = []
    for line in file.read_text().splitlines():
        match = re.match(r"\s*(0x[0-9a-f]+|0)\s[^:]*:", line)
        if match:
            if int(match[1], 16) != len(found):
                raise BadDump(f"{file.name}: bundle {match[1]} where {len(found):#x} should be")
            found.append(line)
    return found


def _regions(bundles: list[str]) -> set[tuple[int, int]]:
    """(first bundle, one after the last) of every region."""
    started, regions = {}, set()
    for n, line in enumerate(bundles):
        for what, number in re.findall(r"(Start|End) region (\d+)", line):
            if what == "Start":
                started[number] = n
            elif number in started:
                regions.add((started[number], n + 1))
    return regions


def _slots(bundles_file: Path, count: int) -> list[Counter]:
    """Slots used by each bundle, by unit."""
    stem = re.sub(r"-\d+-final_bundles\.txt$", "", bundles_file.name)
    files = [f for f in bundles_file.parent.iterdir() if re.fullmatch(re.escape(stem) + _UTILIZATION, f.name)]
    if len(files) != 1:
        raise BadDump(f"{bundles_file.name}: {len(files)} utilization tables beside it, not 1")
    capacity, table = files[0].read_text().split("== UTILIZATION:\n")
    units = [name.strip() for name in capacity.splitlines()[1].split(",")]
    rows = [[int(x) for x in line.split()] for line in table.splitlines() if line.strip()]
    if len(rows) != count or any(len(row) != len(units) for row in rows):
        raise BadDump(f"{files[0].name}: {len(rows)} lines of {len(units)} units for {count} bundles")
    return [Counter(dict(zip(units, row, strict=True))) for row in rows]


_UTILIZATION = r"-\d+-final_hlo-static-per-bundle-utilization\.txt"


def compile_kernels(directory: Path, target: str, program: Callable, shapes, names: dict[str, str]) -> dict[str, Path]:
    """Compiles a program whose arguments are (shape, dtype) leaves, and finds its kernels' schedules.

    Args:
      directory: what `targets.prepare` dumps to.
      names: a part of each kernel's name, by pass.
    """
    before = set(directory.iterdir())
    _compile(target, program, shapes)
    new = [f for f in directory.iterdir() if f not in before and re.search(r"-\d+-final_bundles\.txt$", f.name)]
    found = {}
    for which, name in names.items():
        files = [f for f in new if name in f.name and "schedule-analysis" not in f.name]
        if len(files) != 1:
            raise BadDump(f"{target}: {len(files)} schedules named {name}, not 1")
        found[which] = files[0]
    return found


def _compile(target: str, program: Callable, shapes):
    sharding = SingleDeviceSharding(targets.device(target))
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
    return jax.jit(program).lower(*arguments).compile()


def outside_kernels(target: str, program: Callable, shapes) -> int:
    """Cycles that XLA's own cost model gives to what a program does outside of its kernels; sorts it leaves out.

    Raises:
      BadDump: the program has a loop, whose rounds the text does not tell, or no estimate.
    """
    text = _compile(target, program, shapes).as_text()
    estimates = [int(cycles) for cycles in re.findall(r'"estimated_cycles":"(\d+)"', text)]
    if " while(" in text or not estimates:
        raise BadDump(f"{target}: a program with a loop or without an estimate of cycles")
    return sum(estimates)


def ours(directory: Path, target: str, tiles: Tiles) -> dict[str, Schedule]:
    """Both passes of `pallas_tpu`, one query head a key head, with a plan of one anchor."""
    array = jax.ShapeDtypeStruct((1, T, 1, WIDTH), jnp.bfloat16)
    scalars = jax.ShapeDtypeStruct((1, T, 1), jnp.float32)
    segment_ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
    plan = jax.eval_shape(lambda s: make_plan(Mask.from_segments(s, 1), *tiles), segment_ids)

    def program(q, k, v, do, lse, delta, plan):
        arrays = Arrays(q, k, v, plan)
        return forward.call(arrays), backward.call(arrays, do, lse, delta)

    shapes = (*[array] * 4, *[scalars] * 2, plan)
    names = {which: f"anchor_attention_{which}" for which in PASSES}
    files = compile_kernels(directory, target, program, shapes, names)
    schedules = {which: read(files[which], matrix_instructions(target, which, tiles)) for which in PASSES}
    for which, schedule in schedules.items():
        if len(schedule.bodies) != 2:
            raise BadDump(f"{target} {which}: {len(schedule.bodies)} bodies, not one with and one without a mask")
    return schedules


def peer(directory: Path, target: str, attention: Callable, tiles: Tiles) -> dict[str, Schedule]:
    """Both passes of one of `peers`."""
    array = jax.ShapeDtypeStruct((PEER_HEADS, PEER_T, WIDTH), jnp.bfloat16)
    shapes = (*[array] * 3, jax.ShapeDtypeStruct((PEER_T,), jnp.int32))
    files = compile_kernels(directory, target, peers.gradient(attention, *tiles), shapes, peers.NAMES)
    # Both peers multiply p in fp32 registers with v widened to fp32; the products are of bf16 all the same.
    return {which: read(files[which], matrix_instructions(target, which, tiles, fp32_weights=True)) for which in PASSES}
