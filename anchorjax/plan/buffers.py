"""Buffers of a compiled program, as its compiler assigned them to memory and by when they are live.

    options = {"xla_dump_to": directory}  # of a compilation
    assigned = buffers.read(directory)

A program that is compiled for hardware which is not here has no assignment in `memory_analysis`, but the compilers for
TPUs, GPUs and CPUs all write it as text, also where they then refuse the program for its size. Three files count:

    *-buffer-assignment.txt          allocations, and the place of each value in one
    *-live-range.txt                 the first and the last instruction of each value, in the order in which they run;
                                     the instructions of a loop's body come once, in front of the loop's own
    *-buffer-assignment-values.txt   the instruction that makes each value, with its path of JAX's operations
"""

import dataclasses
import re
from pathlib import Path

DEVICE_SPACE, HOST_SPACE = 0, 5  # numbers of memories in layouts and allocations


@dataclasses.dataclass(frozen=True)
class Value:
    """A result of an instruction, or a part of one.

    Attributes:
      name: the instruction's, and a place in its tuple: "while.5{2}".
      shape: with its dtype, as in "bf16[4,2048]".
      offset: bytes from the start of its allocation.
      start, end: the numbers of the instructions that make it and that need it last.
      opcode: of the instruction, as in "fusion".
      path: of JAX's operations; "" without.
    """

    name: str
    shape: str
    bytes: int
    offset: int
    start: int
    end: int
    opcode: str
    path: str


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Memory that a run of the program holds from its beginning to its end.

    Attributes:
      space: number of the memory: DEVICE_SPACE, HOST_SPACE, or a small one on a TPU's chip.
      parameter: the number of the argument that it holds, or None.
      is_output: it holds a result of the program, and no argument.
      is_temporary: its bytes are used by one value after another.
    """

    bytes: int
    space: int
    parameter: int | None
    is_output: bool
    is_temporary: bool
    values: tuple[Value, ...]

    @property
    def slots(self) -> list["Slot"]:
        """Values by place and time: those that share both are one."""
        by_place: dict[tuple[int, int], list[Value]] = {}
        for value in self.values:
            by_place.setdefault((value.offset, value.bytes), []).append(value)
        return [slot for values in by_place.values() for slot in _slots(values)]


@dataclasses.dataclass(frozen=True)
class Slot:
    """Values that take the same bytes one after the other without a gap: an array that a loop carries, or one that the
    next instruction overwrites in place."""

    values: tuple[Value, ...]

    @property
    def bytes(self) -> int:
        return self.values[0].bytes

    @property
    def start(self) -> int:
        return self.values[0].start

    @property
    def end(self) -> int:
        return max(value.end for value in self.values)

    def at(self, time: int) -> list[Value]:
        return [value for value in self.values if value.start <= time <= value.end]


def read(directory: Path) -> list[Allocation]:
    """The allocations of the one program whose compilation wrote to the directory.

    Raises:
      FileNotFoundError: the compiler wrote none.
    """
    assignment = _file(directory, "-buffer-assignment.txt")
    made_by = _instructions(_file(directory, "-buffer-assignment-values.txt"))
    times = _live_ranges(_file(directory, "-live-range.txt"))
    found, head, values = [], None, []

    def finish():
        if head is not None:
            found.append(_allocation(head, values))

    for line in assignment.splitlines():
        if line.startswith("allocation "):
            finish()
            head, values = line, []
        elif match := re.match(r" value: <\d+ (\S+)(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): ([^{(]*)", line):
            name = match[1] if match[1].endswith("}") else match[1] + "{}"
            if name in times:  # those of a fusion's inside have no time
                opcode, path = made_by.get(name.partition("{")[0], ("", ""))
                values.append(Value(name, match[4], int(match[2]), int(match[3]), *times[name], opcode, path))
        elif not line.startswith(" "):
            finish()
            head = None
    finish()
    return found


def _file(directory: Path, ending: str) -> str:
    """The text of the largest file with this ending: a compiler may compile small programs on its way."""
    files = sorted(directory.glob(f"*{ending}"), key=lambda file: file.stat().st_size)
    if not files:
        raise FileNotFoundError(f"the compiler wrote no *{ending} to {directory}")
    return files[-1].read_text()


def _allocation(head: str, values: list[Value]) -> Allocation:
    number = lambda pattern: int(match[1]) if (match := re.search(pattern, head)) else None  # noqa: E731
    parameter = number(r", parameter (\d+)")
    return Allocation(
        bytes=number(r"size (\d+)"),
        space=number(r", color (\d+)") or 0,
        parameter=parameter,
        is_output=parameter is None and "maybe-live-out" in head,
        is_temporary="preallocated-temp" in head,
        values=tuple(values),
    )


def _instructions(text: str) -> dict[str, tuple[str, str]]:
    """(opcode, path) of each instruction by its name."""
    found = {}
    for match in re.finditer(r"^ from instruction: %?(\S+) = (.*)$", text, re.MULTILINE):
        path = re.search(r'op_name="([^"]*)"', match[2])
        opcode = re.search(r" ([a-z][\w\-]*)\(", " " + match[2])
        found[match[1]] = opcode[1] if opcode else "", path[1] if path else ""
    return found


def _live_ranges(text: str) -> dict[str, tuple[int, int]]:
    section = text.partition("BufferLiveRange:")[2].partition("Live ranges at")[0]
    lines = re.findall(r"^\s+(\S+\{[\d,]*\}):(\d+)-(\d+)$", section, re.MULTILINE)
    return {name: (int(start), int(end)) for name, start, end in lines}


def _slots(values: list[Value]) -> list[Slot]:
    slots, run = [], []
    for value in sorted(values, key=lambda value: value.start):
        if run and value.start > max(one.end for one in run):
            slots.append(Slot(tuple(run)))
            run = []
        run.append(value)
    return [*slots, Slot(tuple(run))] if run else slots
