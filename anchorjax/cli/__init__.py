"""The program `anchorjax`: `anchorjax train --config=quickstart --workdir=runs/quickstart`, and so on.

A command is a module of this package with `main(argv) -> int`, where `argv` holds what follows the command's name.
It is imported when it is called for, so that nothing waits for what another command needs.
"""

import difflib
import importlib
import sys
from collections.abc import Iterable, Sequence

import anchorjax

COMMANDS = {
    "train": "train a model, or resume a run",
    "prepare": "tokenize documents into a store on disk, which runs open at once",
    "plan": "say whether a run fits TPUs or GPUs that are not here, and how to start it there",
    "convert": "import or export a Hugging Face checkpoint",
    "evaluate": "score a model: RULER, needle, LongBench, LongPPL, perplexity, lm-eval",
    "generate": "continue a prompt",
    "report": "write a page about runs, or about a store",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` names, or sys.argv without it, and returns its exit code; 2 for a bad command."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(f"anchorjax {anchorjax.__version__}")
        return 0
    if name not in COMMANDS:
        fault = f"unknown command {name!r}" if name else "no command is given"
        print(f"anchorjax: {fault}; there are {', '.join(COMMANDS)}{suggestion(name, COMMANDS)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"anchorjax.cli.{name}").main(rest)


def help_text() -> str:
    lines = ["Long-context training with AnchorAttention.", "", "Usage: anchorjax COMMAND [arguments]", ""]
    lines += [f"  {name:<10}{what}" for name, what in COMMANDS.items()]
    return "\n".join([*lines, "", "anchorjax COMMAND --help says what a command takes."])


def suggestion(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'train'?" for a name like one that is known, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
