"""Cells of tables with a column for each run."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from anchorjax.pages.page import Table
from anchorjax.pages.runs.reading import Run
from anchorjax.pages.runs.values import is_number

NONE = "–"  # in place of a number that a run does not have


def by_run(caption: str, head: str, runs: Sequence[Run], rows: Mapping[str, Sequence[str]]) -> Table:
    return Table(caption, (head, *(run.name for run in runs)), [(label, *cells) for label, cells in rows.items()])


def put(rows: dict[str, list[str]], label: str, runs: Sequence[Run], number: int, cell: str) -> None:
    """Into the column of the run of that number."""
    rows.setdefault(label, [NONE] * len(runs))[number] = cell


def number(value: Any) -> str:
    if not is_number(value):
        return NONE
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4f}"


def plain(value: Any) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def about(runs: Sequence[Run], run: Run, text: str) -> str:
    """A sentence about `run`, which names it on a page of several."""
    return f"{run.name}: {text}" if len(runs) > 1 else text[:1].upper() + text[1:]
