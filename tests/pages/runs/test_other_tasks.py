"""A task that the page does not know gets a section with a table of its scores, for a run and for a model's results."""

import json
from pathlib import Path

import pytest

from anchorjax.config import recipe
from anchorjax.pages.page import Folded, Paragraph, Table
from anchorjax.pages.runs.reading import TITLES, Run, read
from anchorjax.pages.runs.sections import sections

RESULT = {"seed": 7, "context": 64, "lengths": [32, 64], "scores": {"copy": {"32": 50, "64": 12.5}}, "mean": 31.25}


def left(folder: Path, result: dict, kind: str) -> Run:
    """A directory in which the task `copying` left `result`."""
    results = folder / "eval" if kind == "run" else folder
    (results / "copying").mkdir(parents=True)
    (results / "copying" / "copying.json").write_text(json.dumps(result))
    (results / "copying" / "details.json").write_text("no result")
    if kind == "run":
        (folder / "config.json").write_text(json.dumps(recipe("quickstart").to_dict()))
    return read([folder])[0]


@pytest.mark.parametrize("kind", ["run", "results"])
def test_a_task_without_an_entry_gets_a_table_of_its_scores(tmp_path, kind):
    assert "copying" not in TITLES
    run = left(tmp_path / "one", RESULT | {"notes": ["made for this test"]}, kind)
    (section,) = sections([run])
    note, table, settings = section.blocks
    assert section.title == "copying"
    assert note == Paragraph("Note: made for this test.")
    assert table == Table(
        "Scores",
        ("score", "one"),
        [("scores.copy.32", "50"), ("scores.copy.64", "12.50"), ("mean", "31.25")],
    )
    assert isinstance(settings, Folded)
    (asked,) = settings.blocks
    assert dict(asked.rows) == {"seed": "7", "context": "64", "lengths": "[32, 64]"}


def test_runs_stand_side_by_side_and_known_tasks_come_first(tmp_path):
    runs = [left(tmp_path / "one", RESULT, "run"), left(tmp_path / "two", {"mean": 0.5}, "results")]
    harness = tmp_path / "two" / "harness"
    harness.mkdir()
    (harness / "harness.json").write_text(json.dumps({"results": {"piqa": {"acc,none": 0.5}}}))
    (runs[1],) = read([tmp_path / "two"])
    known, other = sections(runs)
    assert (known.title, other.title) == (TITLES["harness"], "copying")
    rows = {label: row for label, *row in other.blocks[0].rows}
    assert rows["mean"] == ["31.25", "0.5000"] and rows["scores.copy.32"] == ["50", "–"]
