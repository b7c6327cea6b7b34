"""Scores a model: `anchorjax evaluate TASK ...`, the same as `python eval/TASK.py ...`."""

import importlib
import sys
from collections.abc import Sequence

from anchorjax.cli import suggestion
from anchorjax.evaluation import COMMANDS


def main(argv: Sequence[str]) -> int:
    name, *rest = argv or [""]
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name not in COMMANDS:
        fault = f"unknown task {name!r}" if name else "no task is given"
        there = f"there are {', '.join(COMMANDS)}{suggestion(name, COMMANDS)}"
        print(f"anchorjax evaluate: {fault}; {there}", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[name][1]).main(rest)


def help_text() -> str:
    lines = ["Score a model.", "", "Usage: anchorjax evaluate TASK [arguments]", ""]
    lines += [f"  {name:<19}{what}" for name, (what, _) in COMMANDS.items()]
    return "\n".join([*lines, "", "anchorjax evaluate TASK --help says what a task takes."])
