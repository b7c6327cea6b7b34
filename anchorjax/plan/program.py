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

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
# What a device receives, in sizes of the collective's result on that device, among n devices.
RECEIVED = {
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,  # a reduce-scatter and an all-gather
    "collective-permute": lambda n: 1,
}
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(RECEIVED)})(-start)?\(")


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
    """

    path: str
    is_in_main: bool
    kind: str
    dtype: str
    result_bytes: int
    devices: int
    times: int

    @property
    def equal(self) -> tuple:
        """What it has in common with another iteration's."""
        return self.kind, self.dtype, self.result_bytes, self.devices

    @property
    def received(self) -> float:
        """Bytes that a device receives from others in a run of the program, by the usual algorithms."""
        return RECEIVED[self.kind](self.devices) * self.result_bytes * self.times


def collectives(hlo: str) -> list[Collective]:
    """All collectives of the program. A fusion that libtpu names all-reduce-scatter is a reduce-scatter."""
    lines_of, main = computations(hlo), re.search(r"^ENTRY %?([\w.\-]+)", hlo, re.MULTILINE)[1]
    callers = callers_of(lines_of)

    @functools.cache
    def times(name: str) -> int:
        return 1 if name == main else sum(count * times(caller) for caller, count, _ in callers.get(name, ()))

    def loop_of(name: str) -> str:
        while name in callers and all(is_fusion for *_, is_fusion in callers[name]):
            name = callers[name][0][0]
        return name

    found = []
    for name, lines in lines_of.items():
        for line in lines if times(name) else ():
            if match := _COLLECTIVE.search(line):
                kind, loop, devices = match[2], loop_of(name), group_size(line)
                is_in_main = loop == main
                path = path_of([line]) or ("" if is_in_main else path_of(lines_of[loop], within="while/body"))
                scatters = name.startswith("all-reduce-scatter") and kind == "all-reduce"
                for dtype, size in results(match[1], kind, bool(match[3])):
                    made = ("reduce-scatter", dtype, size // devices) if scatters else (kind, dtype, size)
                    found.append(Collective(path, is_in_main, *made, devices, times(name)))
    return found


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
            called = re.findall(r"(calls|to_apply|body)=%?([\w.\-]+)", line)
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
    """Dtype and bytes of each result of an instruction, from the text of its type."""
    found = [
        (dtype, BYTES[dtype] * math.prod(int(side) for side in sides.split(",") if side))
        for dtype, sides in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shapes)
        if dtype in BYTES
    ]
    if is_start and kind == "collective-permute":
        return found[1:2]  # (operand, result, two counters)
    return found[len(found) // 2 :] if is_start and kind != "all-reduce" else found  # behind the operands


def group_size(line: str) -> int:
    """Devices that one collective joins, from any of the ways in which XLA prints groups."""
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", match[2]))
    return 2  # a permutation has pairs
