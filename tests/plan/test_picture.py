"""The picture of a plan: its bars are the plan's numbers, and where it cannot be written is known at once."""

import dataclasses
import os
import types

import pytest

from anchorjax.errors import UsageError
from anchorjax.pages import figures
from anchorjax.plan import picture
from anchorjax.plan.memory import Memory
from anchorjax.plan.work import Part
from tests import html as pages
from tests import tiny

GB = 10**9
GIVEN = Memory(4 * GB, 8 * GB, 3 * GB, 50 * GB, 2 * GB, 20 * GB, GB // 10, host=7 * GB)
SMALLER = dataclasses.replace(GIVEN, saved_activations=5 * GB)


def step(*seconds: float) -> types.SimpleNamespace:
    parts = tuple(Part(f"part {number}", each, "") for number, each in enumerate(seconds))
    return types.SimpleNamespace(parts=parts, seconds=sum(seconds))


def trial(memory, refused=0) -> types.SimpleNamespace:
    config = tiny.config(data__upsample_long=True)
    mesh = types.SimpleNamespace(shape={"data": 1, "fsdp": 1, "context": 1, "tensor": 1})
    needed = max(refused, memory.total if memory else 0)
    return types.SimpleNamespace(memory=memory, refused=refused, hbm_bytes=needed, config=config, mesh=mesh, hlo="text")


def plan_of(first, attempts=(), contenders=(), time=None) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        first=first,
        attempts=[types.SimpleNamespace(remedy=name, trial=one) for name, one in attempts],
        contenders=[types.SimpleNamespace(timed=types.SimpleNamespace(trial=one)) for one in contenders],
        chosen=attempts[-1][1] if attempts else first,
        hardware=types.SimpleNamespace(hbm_bytes=78.2 * GB),
        documents=types.SimpleNamespace(documents_per_row=124.4),
        time=time,
    )


def test_kinds_of_memory_add_up_to_what_a_device_needs():
    panel = picture.memory({"as given": GIVEN, "refused": 60 * GB, "remat": SMALLER}, 78.2 * GB)
    sums = [sum(values) for values in zip(*panel.parts.values(), strict=True)]
    assert sums == pytest.approx([GIVEN.total / GB, 60, SMALLER.total / GB])
    assert panel.parts["saved activations"] == [50, 0, 5] and panel.parts[picture.UNKNOWN] == [0, 60, 0]
    assert "host" not in panel.parts and panel.limit == ("capacity, 78.2 GB", pytest.approx(78.2))
    assert picture.UNKNOWN not in picture.memory({"as given": GIVEN}, GB).parts


def test_parts_of_a_step_add_up_to_its_time():
    steps = {"1": step(1, 9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "own": step(1, 2, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}
    panel = picture.step_time(steps, "documents of a row")
    sums = [sum(values) for values in zip(*panel.parts.values(), strict=True)]
    assert sums == pytest.approx([one.seconds for one in steps.values()]) and panel.labels == ["1", "own"]
    assert list(panel.parts) == ["part 0", "part 1", "part 4", "part 5", "part 6", "part 7", "other parts"]
    assert panel.parts["part 1"] == [9, 2] and panel.parts["other parts"] == pytest.approx([0.3, 0.3])
    assert panel.y_label == "s"
    twice = step(1, 2)
    twice.parts = (*twice.parts, Part("part 0", 4, "beside the layers"))
    assert picture.step_time({"1": twice}, "").parts == {"part 0": [5], "part 1": [2]}
    small = picture.step_time({"1": step(0.25, 0.5)}, "")
    assert small.y_label == "ms" and small.parts == {"part 0": [250], "part 1": [500]}


def test_steps_are_modelled_on_rows_of_equal_documents(monkeypatch):
    """For the chosen configuration's mesh and program; rows of 64 tokens hold at most 63 documents."""
    given = []
    monkeypatch.setattr(picture.times, "model", lambda *arguments: given.append(arguments) or step(1))
    plan = plan_of(trial(GIVEN))
    found = picture.by_documents(plan)
    assert list(found) == ["1", "2", "4", "8", "16", "32"]
    for number, (config, mesh, hardware, counted, hlo) in zip(found, given, strict=True):
        assert (counted.documents_per_row, counted.fill) == (int(number), 1)
        assert (config, mesh) == (plan.chosen.config, plan.chosen.mesh)
        assert (hardware, hlo) == (plan.hardware, "text")
    pairs = [counted.pairs for *_, counted, _ in given]
    assert pairs[0] == 64 * 65 / 2 and pairs == sorted(set(pairs), reverse=True)


@pytest.mark.parametrize("fits", [True, False])
def test_the_same_plan_gives_the_same_picture(fits, monkeypatch, tmp_path):
    monkeypatch.setattr(picture.times, "model", lambda *arguments: step(1, arguments[3].live_ratio))
    attempts = [("remat", trial(GIVEN)), ("remat", trial(SMALLER)), ("accumulation", trial(None, refused=90 * GB))]
    attempts += [("offload", None), ("tiled MLP", trial(SMALLER))]
    plan = plan_of(trial(GIVEN), attempts, [trial(SMALLER)], step(1, 0.3) if fits else None)
    drawn, draw = [], figures.stacks
    monkeypatch.setattr(figures, "stacks", lambda panels, **keys: drawn.append(panels) or draw(panels, **keys))
    path = picture.place(str(tmp_path / "plan.png"))
    picture.write(plan, path)
    assert path.read_bytes() == picture.png(plan)
    pixels = pages.decode(path.read_bytes())
    assert not pages.is_blank(pixels) and pixels.shape[1] == 1125
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255, "something runs into the edge"
    memory, *times = drawn[0]
    assert memory.labels == ["as given", "remat", "accumulation", "tiled MLP", "search 1"]
    assert memory.parts["saved activations"] == [50, 5, 0, 5, 5], "of each remedy the smallest"
    assert [panel.labels[-1] for panel in times] == ["own"] * fits


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plan.jpg", "it must be the path of a .png file"),
        ("nowhere/plan.png", "there is no folder nowhere"),
        ("folder.png", "it is a folder"),
    ],
)
def test_where_no_picture_can_be_written(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match=message) as error:
        picture.place(name)
    assert str(error.value).startswith(f"--picture={name} ") and "\n" not in str(error.value)


def test_a_folder_that_is_gone_when_the_picture_is_ready(tmp_path):
    (tmp_path / "folder").mkdir()
    path = picture.place(str(tmp_path / "folder/plan.png"))
    os.rmdir(path.parent)
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        picture.write(plan_of(trial(GIVEN)), path)
