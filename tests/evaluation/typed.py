"""The commands that a page about results shows: typed again, they must give the results again."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from anchorjax.pages.runs import commands, reading


def assert_makes_the_same(main: Callable[[list[str]], int], path: Path, evaluation: str) -> str:
    """Types the command that a page about `path` shows for a finished evaluation, and returns it.

    Where a script keeps answers, what is finished needs no weights: callers take them away before.
    """
    (run,) = reading.read([path])
    file = run.file(evaluation)
    before = json.loads(file.read_bytes())
    command = commands.made(run, evaluation)
    _, script, *arguments = shlex.split(command)
    assert Path(script).stem in (evaluation, evaluation.removesuffix("_text"))
    file.unlink()
    assert main(arguments) == 0
    assert json.loads(file.read_bytes()) == before
    return command
