"""Collectives of an optimized HLO program, from its text, with how often each runs.

A text has a collective once for a loop that runs it many times, and several times where a compiler cuts one into parts:

    loops   a while runs its body as often as its known_trip_count says or, on TPUs, as the constant in its condition;
            one whose length depends on the data counts once
    peeled  XLA for GPUs takes a loop's first or last iteration out of it: those run once, and the loop less often
    parts   libtpu writes an asynchronous collective as fusions async-collective-start, async_collective_fusion and
            async-collective-done, each with the collective in its computation; the start counts
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping

from anchorjax.plan.groups import Groups, groups

BYTES = {"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
# What a device receives, in sizes of the collective's result on that device, among n devices.
RECEIVED = {
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,  # a reduce-scatter and an all-gather
    "collective-permute": lambda n: 1,
}
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(RECEIVED)})(-start)?\(")
_WORK = ("fusion", "custom-call", "dot", "convolution", "while", "call", "conditional")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      path: of JAX's operations. One that the compiler made of several has that of another operation of its loop, and
        outside of loops "".
      is_in_main: whether it is in no loop.
      result_bytes: on one device.
      devices: that exchange with one another.
      times: that a run of the program runs it.
      groups: of devices that exchange with one another, or pairs (source, target).
      is_overlapped: whether the schedule has computation between its start and its end.
    """

    path: str
    is_in_main: bool
    kind: str
    dtype: str
    result_bytes: int
    devices: int
    times: int
    groups: Groups = ()
    is_overlapped: bool = False

    @property
    def equal(self) -> tuple:
        """What it has in common with another iteration's."""
        return self.kind, self.dtype, self.result_bytes, self.devices

    @property
    def received(self) -> float:
        """Bytes that a device receives from others in a run of the program, by the usual algorithms."""
        return RECEIVED[self.kind](self.devices) * self.result_bytes * self.times


def collectives(hlo: str) -> list[Collective]:
    """All collectives of the program. A fusion that libtpu names all-reduce-scatter is a reduce-scatter.

    Raises:
      ValueError: a result's dtype or the print of groups is unknown.
    """
    lines_of, main = computations(hlo), main_of(hlo)
    callers = callers_of(lines_of)
    times = times_of(lines_of, callers, main)
    partitions = re.search(r"num_partitions=(\d+)", hlo)
    num_devices = int(partitions[1]) if partitions else 1
    overlapped = {name: found for name, lines in lines_of.items() for name, found in pairs(lines).items()}

    def loop_of(name: str) -> str:
        while name in callers and all(is_fusion for *_, is_fusion in callers[name]):
            name = callers[name][0][0]
        return name

    found = []
    for name, lines in lines_of.items():
        for line in lines if times[name] else ():
            if match := _COLLECTIVE.search(line):
                together = groups(line, num_devices)
                kind, loop, devices = match[2], loop_of(name), max(map(len, together))
                is_in_main = loop == main
                is_overlapped = overlapped.get(name_of(line), overlapped.get(name, False))
                path = path_of([line]) or ("" if is_in_main else path_of(lines_of[loop], within="while/body"))
                scatters = name.startswith("all-reduce-scatter") and kind == "all-reduce"
                for dtype, size in results(match[1], kind, bool(match[3])):
                    made = ("reduce-scatter", dtype, size // devices) if scatters else (kind, dtype, size)
                    found.append(Collective(path, is_in_main, *made, devices, times[name], together, is_overlapped))
    return found


def main_of(hlo: str) -> str:
    """The name of the computation that the program runs."""
    return re.search(r"^ENTRY %?([\w.\-]+)", hlo, re.MULTILINE)[1]


def times_of(names: Iterable[str], callers: Mapping[str, list[tuple[str, int, bool]]], main: str) -> dict[str, int]:
    """How often a run of the program, whose computation is `main`, runs each of these; `callers` are `callers_of`."""

    @functools.cache
    def times(name: str) -> int:
        return 1 if name == main else sum(count * times(caller) for caller, count, _ in callers.get(name, ()))

    return {name: times(name) for name in names}


def name_of(line: str) -> str:
    """The name of an instruction; "" of a line that is none."""
    match = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line)
    return match[1] if match else ""


def pairs(lines: list[str]) -> dict[str, bool]:
    """Whether computation runs between start and end of each asynchronous collective that a computation starts.

    By the start's name, and by the name of the computation that it calls: libtpu writes a pair as two fusions,
    async-collective-start and -done, or for a SparseCore as call-start and call-done, with the collective in them.
    """
    found, open_pairs, called = {}, {}, {}
    kinds = "|".join((*RECEIVED, "ragged-all-to-all", "async-collective"))
    for line in lines:
        instruction = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = .*?[})\]] ([a-z\-]+)\((.*)", line)
        if not instruction:
            continue
        name, operation, rest = instruction.groups()
        pair = re.match(rf"(?:{kinds})-(start|done)", operation if operation != "fusion" else name)
        if not pair and re.match(kinds, name):
            pair = re.fullmatch(r"call-(start|done)", operation)
        if pair and pair[1] == "start":
            open_pairs[name] = False
            if computation := re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", rest):
                called[name] = computation[1]
        elif pair:
            started = [other for other in open_pairs if re.search(rf"%{re.escape(other)}[,)\s]", rest)]
            start = started[0] if started else name.replace("done", "start", 1)
            found[start] = open_pairs.pop(start)
        elif operation in _WORK:
            open_pairs = dict.fromkeys(open_pairs, True)
    return found | {called[name]: found[name] for name in called if name in found}


def path_of(lines: list[str], within: str = "") -> str:
    """The first path of JAX's operations in the lines, of those that have `within`; "" without any."""
    pattern = re.compile(rf'op_name="([^"]*{within}[^"]*)"')
    return next((match[1] for line in lines if (match := pattern.search(line))), "")


def computations(hlo: str) -> dict[str, list[str]]:
    """The lines of each computation, by its name."""
    found, lines = {}, []
    for line in hlo.splitlines():
        if match := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            lines = found[match[1]] = []
        else:
            lines.append(line)
    return found


def callers_of(lines_of: dict[str, list[str]]) -> dict[str, list[tuple[str, int, bool]]]:
    """For each computation its callers: (computation, times that one run of it calls, whether a fusion does).

    Parts of a collective that has begun elsewhere are left out, and so is what a `-start` of a collective wraps.
    """
    callers = collections.defaultdict(list)
    for name, lines in lines_of.items():
        for line in lines:
            called = re.findall(r"(calls|to_apply|body|(?:true|false)_computation)=%?([\w.\-]+)", line)
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                called += [("branch", branch) for branch in re.findall(r"%?([\w.\-]+)", branches)]
            goes_on = re.match(r"\s+(?:ROOT )?%?async-collective-done", line) or _COLLECTIVE.search(line)
            for how, other in () if goes_on else called:
                if not other.startswith("async_collective_fusion"):
                    count = trips(line, lines_of) if how == "body" else 1
                    callers[other].append((name, count, " fusion(" in line))
    return dict(callers)


def trips(line: str, lines_of: dict[str, list[str]]) -> int:
    """Iterations of a while; 1 if they depend on the data."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    condition = lines_of[re.search(r"condition=%?([\w.\-]+)", line)[1]]
    bounds = [match[1] for each in condition if (match := re.search(r"= s32\[\]\S* constant\((\d+)\)", each))]
    return int(bounds[0]) if len(bounds) == 1 else 1


def results(shapes: str, kind: str, is_start: bool) -> list[tuple[str, int]]:
    """Dtype and bytes of each result of an instruction, from the text of its type.

    Raises:
      ValueError: a dtype whose size is not known.
    """
    found = [(dtype, size(dtype, sides)) for dtype, sides in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shapes)]
    if is_start and kind == "collective-permute":
        return found[1:2]  # (operand, result, two counters)
    return found[len(found) // 2 :] if is_start and kind != "all-reduce" else found  # behind the operands


def size(dtype: str, sides: str) -> int:
    """Bytes of an array, from "bf16" and "8,128". Raises ValueError for an unknown dtype."""
    if dtype not in BYTES:
        raise ValueError(
            f"dtype {dtype} of a collective in the compiled program; sizes are known of {', '.join(BYTES)}"
        )
    return BYTES[dtype] * math.prod(int(side) for side in sides.split(",") if side)
