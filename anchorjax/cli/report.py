"""Writes a page about runs side by side, or about a store of documents.

    anchorjax report runs/a runs/b --out=report.html
    anchorjax report --store --config=quickstart --config.data.store=stores/books

The page is one HTML file that needs no server, network or script. For runs it shows losses, perplexity by position,
RULER, needles and all other results in their directories, their configurations, and the commands that made them. For a
Hugging Face directory, name what its evaluations wrote: eval-results/MODEL. For a store it shows its documents and what
packing makes of them. Exit codes: 0 done, 2 bad input.
"""

import shlex
from collections.abc import Sequence

from anchorjax.config import overrides
from anchorjax.config.options import Option
from anchorjax.errors import run_program
from anchorjax.parsing import Parser, on_disk

PROGRAM = "anchorjax report"
USAGE = "anchorjax report --store --config=quickstart [--config.KEY=VALUE ...] [--out=page.html]"
STORE_OPTIONS = {
    "store": Option(False, "a page about a store, not about runs"),
    "out": Option("", "the page; empty: report.html in the store", what="PATH"),
}


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Returns the exit code; `program` is what was typed before the arguments, for records and messages."""
    command = shlex.join([*program.split(), *argv])
    return run_program(program, lambda: (report_store if "--store" in argv else report_runs)(argv, program, command))


def report_runs(argv: Sequence[str], program: str, command: str) -> None:
    """Raises EvaluationError, WorkdirError or UsageError; see `pages.runs.make`."""
    from anchorjax.pages import runs

    parser = Parser(program.rpartition("/")[2], __doc__)
    parser.add_argument("runs", type=on_disk, nargs="+", metavar="RUN", help="a run's --workdir, or eval-results/MODEL")
    parser.add_argument("--out", type=on_disk, help="the page; default: report.html in the run's directory")
    parser.add_argument("--store", action="store_true", help="about a store instead: takes --config, as training does")
    arguments = parser.parse_args(argv)
    print(f"written to {runs.make(arguments.runs, command, arguments.out)}")


def report_store(argv: Sequence[str], program: str, command: str) -> None:
    """Raises ConfigError, WeightsError, UsageError or DataError; see `pages.store.make`."""
    config, options = overrides.parse(argv, STORE_OPTIONS, USAGE)
    from anchorjax.pages import store
    from anchorjax.training import setup

    completed = setup.complete(config, setup.find_pretrained(config))
    print(f"written to {store.make(completed, command, options['out'])}", flush=True)
