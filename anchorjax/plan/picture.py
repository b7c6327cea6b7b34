"""A plan as a picture: the memory of a device by what takes it, and the time of a step by the documents of its rows.

    path = picture.place("plan.png")  # before anything is compiled
    picture.write(plan, path)

The same plan gives the same bytes.
"""

import collections
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from anchorjax.errors import UsageError
from anchorjax.files import write_atomically
from anchorjax.pages import figures
from anchorjax.pages.figures import Stacks
from anchorjax.plan import documents
from anchorjax.plan import time as times
from anchorjax.plan.memory import Memory
from anchorjax.plan.planner import Plan
from anchorjax.plan.time import StepTime

DOCUMENTS = tuple(2**n for n in range(9))  # that rows are cut into
MOST_PARTS = 6  # of a step that have a colour; the others are one
UNKNOWN = "not known by kind"  # memory of a step that the compiler refused before it assigned buffers


def place(text: str) -> Path:
    """The path that `--picture` names. Raises UsageError if no picture can be written there."""
    path = Path(text).expanduser()
    folder = path.parent
    if path.suffix != ".png":
        raise UsageError(f"--picture={text} is not allowed: it must be the path of a .png file")
    if not folder.is_dir():
        raise UsageError(f"--picture={text} cannot be written: there is no folder {folder}")
    if path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "it is a folder" if path.is_dir() else f"{folder} is read-only"
        raise UsageError(f"--picture={text} cannot be written: {reason}")
    return path


def write(plan: Plan, path: Path) -> None:
    """Raises UsageError if the file cannot be written."""
    try:
        write_atomically(path, png(plan))
    except OSError as error:
        raise UsageError(f"--picture={path} cannot be written: {error.strerror or error}") from error


def png(plan: Plan) -> bytes:
    """Memory of what was compiled, as given, with remedies and by a search; the modelled time of a step if one fits."""
    trials = {"as given": plan.first}
    for one in plan.attempts:
        if one.trial:
            trials[one.remedy] = min(one.trial, trials.get(one.remedy, one.trial), key=lambda trial: trial.hbm_bytes)
    trials |= {f"search {number}": one.timed.trial for number, one in enumerate(plan.contenders, 1)}
    panels = [memory({name: one.memory or one.refused for name, one in trials.items()}, plan.hardware.hbm_bytes)]
    if plan.time:
        own = plan.documents.documents_per_row
        panels.append(step_time(by_documents(plan) | {"own": plan.time}, f"documents of a row (own: {own:,.1f})"))
    return figures.png(figures.stacks(panels, name_value=lambda value: f"{value:.3g}"))


def memory(needed: Mapping[str, Memory | int], capacity: float) -> Stacks:
    """Bars of the memory of one device, in GB, by the names of what needs it.

    Args:
      needed: a number of bytes where kinds are not known.
      capacity: bytes.
    """
    kinds: dict[str, list[float]] = {}
    for field in dataclasses.fields(Memory):
        if field.name != "host":  # in other memory
            kinds[field.name.replace("_", " ")] = [getattr(one, field.name, 0) / 1e9 for one in needed.values()]
    kinds[UNKNOWN] = [one / 1e9 if isinstance(one, int) else 0.0 for one in needed.values()]
    used = {name: values for name, values in kinds.items() if any(values)}
    limit = f"capacity, {capacity / 1e9:.1f} GB", capacity / 1e9
    return Stacks("Memory of a device (compiled)", list(needed), used, "", "GB", limit)


def step_time(steps: Mapping[str, StepTime], x_label: str) -> Stacks:
    """Bars of the time of a step, by the documents of a row. Small parts are drawn as one."""
    unit, scale = ("s", 1) if max(one.seconds for one in steps.values()) >= 1 else ("ms", 1000)
    heights = [seconds_by_name(one, scale) for one in steps.values()]
    longest = collections.Counter()
    for one in heights:
        longest |= one
    shown = {name for name, _ in longest.most_common(MOST_PARTS)}
    parts = {name: [one[name] for one in heights] for name in longest if name in shown}
    others = [sum(value for name, value in one.items() if name not in shown) for one in heights]
    parts |= {"other parts": others} if any(others) else {}
    return Stacks("Time of a step (modelled)", list(steps), parts, x_label, unit)


def seconds_by_name(step: StepTime, scale: float) -> collections.Counter:
    """Exchanges of one place have one name, whether they are hidden or not."""
    found = collections.Counter()
    for part in step.parts:
        found[part.name] += scale * part.seconds
    return found


def by_documents(plan: Plan, numbers: Sequence[int] = DOCUMENTS) -> dict[str, StepTime]:
    """The modelled step on rows of so many equal documents, by their number."""
    config, mesh = plan.chosen.config, plan.chosen.mesh
    every = dataclasses.replace(config, data=dataclasses.replace(config.data, upsample_long=False))
    result = {}
    for number in numbers:
        if number < config.data.seq_len:
            lengths = documents.of_equal(config.data.seq_len, number)
            counted = documents.count(every, mesh.shape, lengths)
            result[str(number)] = times.model(config, mesh, plan.hardware, counted, plan.chosen.hlo)
    return result
