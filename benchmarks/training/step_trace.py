"""What a compiled step's instructions are, and how long each ran.

`instructions` reads the text of `jax.stages.Compiled.as_text()`: its tables of stack frames, and the dimensions of its
dots. `trace_events` reads what `jax.profiler.trace` wrote, whose events have the instructions' names.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

_INSTRUCTION = re.compile(r"^ *(?:ROOT )?%(?P<name>[\w.-]+) = (?P<shape>\S+|\(.*?\)) (?P<op>[\w-]+)\(", re.MULTILINE)
_FRAME = re.compile(r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)\}", re.MULTILINE)
_LOCATION = re.compile(r"^(\d+) \{file_name_id=(\d+) ", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What one instruction of the compiled step is.

    Attributes:
      file: of the innermost frame that is one of `files`; empty if none is.
      flops: of the products that it does each time it runs; 0 if it is none.
    """

    file: str
    flops: float


def instructions(hlo: str, files: tuple[str, ...]) -> dict[str, Instruction]:
    """By name. `files` are ends of paths, as "attention/xla.py"."""
    file_of_frame = _files_of_frames(hlo, files)
    computations = dict(_computations(hlo))
    dots = {name: _dots(text) for name, text in computations.items()}
    found = {}
    for text in computations.values():
        shapes = {match["name"]: match["shape"] for match in _INSTRUCTION.finditer(text)}
        for line in text.splitlines():
            match = _INSTRUCTION.match(line)
            if not match:
                continue
            called = re.search(r"calls=%([\w.-]+)", line)
            flops = dots.get(called[1], 0.0) if called else 0.0
            if match["op"] == "dot":
                flops = _dot(line, shapes)
            frame = re.search(r"stack_frame_id=(\d+)", line)
            found[match["name"]] = Instruction(file_of_frame.get(frame[1], "") if frame else "", flops)
    return found


def trace_events(directory: Path) -> list[tuple[int, int, int, str]]:
    """(thread, start, end, name) in ns of what XLA's threads ran, by thread and start."""
    (file,) = directory.rglob("*.xplane.pb")
    threads = [
        line
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        if line.name.startswith("tf_XLAEigen")
    ]
    events = []
    for number, line in enumerate(threads):
        own = [(number, event.start_ns, event.start_ns + event.duration_ns, event.name) for event in line.events]
        events += sorted(own, key=lambda event: (event[1], -event[2]))
    return events


def own_times(events: Iterable[tuple[int, int, int, str]]) -> Iterator[tuple[str, float]]:
    """(name, seconds) of each event, those of events within it taken off."""
    open_events = []  # thread, end, name, own ns
    for thread, start, end, name in events:
        while open_events and (open_events[-1][0] != thread or open_events[-1][1] <= start):
            _, _, finished, own = open_events.pop()
            yield finished, own / 1e9
        if open_events:
            open_events[-1][3] -= min(end, open_events[-1][1]) - start
        open_events.append([thread, end, name, end - start])
    for _, _, finished, own in open_events:
        yield finished, own / 1e9


def _computations(hlo: str):
    """(name, text) of each."""
    for match in re.finditer(r"^(?:ENTRY )?%([\w.-]+) \(.*?^\}", hlo, re.MULTILINE | re.DOTALL):
        yield match[1], match[0]


def _dots(text: str) -> float:
    shapes = {match["name"]: match["shape"] for match in _INSTRUCTION.finditer(text)}
    return sum(_dot(line, shapes) for line in text.splitlines() if re.search(r" dot\(", line))


def _dot(line: str, shapes: dict[str, str]) -> float:
    """2 * (elements of the result) * (length of the sum)."""
    result = _INSTRUCTION.match(line)["shape"]
    left = re.search(r" dot\([^%]*%([\w.-]+)", line)[1]
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)[1]
    sizes = _sizes(shapes[left])
    return 2.0 * math.prod(_sizes(result)) * math.prod(sizes[int(axis)] for axis in axes.split(",") if axis)


def _sizes(shape: str) -> list[int]:
    return [int(size) for size in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if size]


def _files_of_frames(hlo: str, files: tuple[str, ...]) -> dict[str, str]:
    names = dict(re.findall(r'^(\d+) "([^"]*)"', _table(hlo, "FileNames"), re.MULTILINE))
    file_of_location = {number: names[name] for number, name in _LOCATION.findall(_table(hlo, "FileLocations"))}
    frames = {number: (location, parent) for number, location, parent in _FRAME.findall(_table(hlo, "StackFrames"))}

    def file_of(number: str) -> str:
        seen = set()
        while number in frames and number not in seen:
            seen.add(number)
            location, number = frames[number]
            for file in files:
                if file_of_location.get(location, "").endswith(file):
                    return file
        return ""

    return {number: file_of(number) for number in frames}


def _table(hlo: str, name: str) -> str:
    """The lines below a title, up to an empty one."""
    match = re.search(rf"^{name}\n(.*?)\n\n", hlo, re.MULTILINE | re.DOTALL)
    return match[1] if match else ""
