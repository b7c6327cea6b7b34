"""The commands that results record: typed again, they must give the results again."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load(file: Path) -> dict[str, Any]:
    """A result without the commands, which differ where only --out does."""
    result = json.loads(file.read_bytes())
    assert result.pop("commands")
    return result


def assert_makes_the_same(main: Callable[[list[str]], int], file: Path) -> str:
    """Types the last command of a finished evaluation again, into the directory of `file`, and returns it.

    Where a script keeps answers, what is finished needs no weights: callers take them away before.
    """
    before, command = load(file), json.loads(file.read_bytes())["commands"][-1]
    program, script, *arguments = shlex.split(command)
    assert program == "python" and script.startswith("eval/")
    file.unlink()
    assert main([*arguments, f"--out={file.parent}"]) == 0
    assert load(file) == before
    return command
