"""Scores a model: `anchorjax evaluate TASK ...`, the same as `python eval/TASK.py ...`."""

import importlib
import sys
from collections.abc import Sequence

from anchorjax.cli import suggestion
from anchorjax.evaluation import COMMANDS

# Each task is a module of its own, `evaluation.COMMANDS`.
TASKS = {
    "ruler": "RULER: 13 tasks of retrieval, tracking and counting by length",
    "needle": "a needle in a haystack, by depth and length",
    "longbench": "LongBench from local files",
    "longppl": "LongPPL: perplexity of the tokens that need a long context",
    "perplexity": "perplexity by position, of a run's held-out rows or of a text",
    "harness": "lm-eval's tasks: MMLU, HellaSwag, its RULER, your own",
    "rope_precision": "how far rounding moves attention when positions are shifted",
}


def main(argv: Sequence[str]) -> int:
    name, *rest = argv or [""]
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name not in TASKS:
        fault = f"unknown task {name!r}{suggestion(name, TASKS)}" if name else "no task is given"
        print(f"anchorjax evaluate: {fault}; there are {', '.join(TASKS)}", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[name]).main(rest)


def help_text() -> str:
    lines = ["Score a model.", "", "Usage: anchorjax evaluate TASK [arguments]", ""]
    lines += [f"  {name:<16}{what}" for name, what in TASKS.items()]
    return "\n".join([*lines, "", "anchorjax evaluate TASK --help says what a task takes."])
