"""A page about what was trained and evaluated: one run, or several side by side.

reading.py       what lies in a run's directory
values.py        its numbers, as tables and figures want them
drawing.py       numbers into figures
cells.py         and into cells of tables
sections.py      the section of each evaluation
suggestions.py   commands for the evaluations that were not made
writing.py       the page
"""

from collections.abc import Sequence
from pathlib import Path

from anchorjax.errors import UsageError
from anchorjax.pages import page
from anchorjax.pages.runs import reading, writing


def make(paths: Sequence[Path], command: str, out: Path | None = None) -> Path:
    """Writes the page about runs, or about directories of results, and returns its path.

    The same files give the same page, so nothing on it says when it was made.

    Args:
      command: what makes the page, for the page.
      out: the page's path; by default report.html in the directory of a single run. The figures also lie in a folder
        beside it.

    Raises:
      UsageError: no place for the page; see also `reading.read`.
      WorkdirError, EvaluationError: a file is damaged. Nothing is written then.
    """
    if out is None and len(paths) > 1:
        raise UsageError("--out=PATH is missing: a page about several runs has no place of its own")
    runs = reading.read(paths)
    path = paths[0].expanduser() / "report.html" if out is None else page.place(out)
    page.check_place(path)
    page.write(writing.compose(runs, command), path)
    return path
