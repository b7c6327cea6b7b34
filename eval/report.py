"""A page about runs, side by side: `python eval/report.py runs/a runs/b --out=report.html`.

One HTML file that needs no server, network or script: losses, perplexity by position, RULER, needles and all other
results that lie in the runs' directories, their configurations, and the commands that made them. Of a Hugging Face
directory, name what its evaluations wrote: eval-results/MODEL. Exit codes: 0 done, 2 bad input.
"""

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, without installing

from anchorjax.evaluation import options
from anchorjax.pages import runs as report


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = options.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's --workdir, or eval-results/MODEL")
    parser.add_argument("--out", type=Path, help="the page; default: report.html in the run's directory")
    command = shlex.join(["python", "eval/report.py", *argv])
    return options.run("report.py", lambda: write(parser.parse_args(argv), command), goes_on=False)


def write(arguments: argparse.Namespace, command: str) -> None:
    print(f"written to {report.make(arguments.runs, command, arguments.out)}")


if __name__ == "__main__":
    sys.exit(main())
