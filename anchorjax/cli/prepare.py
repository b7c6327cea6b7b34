"""Tokenizes documents into a store on disk, which training opens by memory map.

    python -m anchorjax.cli.prepare --config=configs/x.py --config.data.source=jsonl:books \\
        --config.data.store=stores/books
    python train.py --config=configs/x.py --workdir=runs/books --config.data.store=stores/books

The tokenizer is the run's. `data.workers` processes share the work; the result is the same for any number. Killed, the
same command goes on with what is missing. It needs twice the space of the store. `--runner=NAME` is a runner of Apache
Beam instead, for many machines, and `--beam.OPTION=VALUE` an option of it.

    python -m anchorjax.cli.prepare --report --config=configs/x.py --config.data.store=stores/books

writes a page about a store that is there already: its documents, and what packing makes of them. Exit codes: 0 done, 1
failed, 2 bad input.
"""

import shlex
import sys
import time

from anchorjax.cli import command_line
from anchorjax.config import Config
from anchorjax.data.store import preparing, remarks
from anchorjax.data.store.index import Index
from anchorjax.data.store.preparing import State
from anchorjax.data.store.runner import PROCESSES, Runner
from anchorjax.errors import UsageError, UserError

HELP = (
    "Usage: --config=configs/quickstart.py [--config.a.b=value ...] [--report [--out=page.html]] "
    "[--runner=NAME [--beam.OPTION=VALUE ...]]"
)


def main() -> int:
    try:
        arguments, runner, beam_options = command_line.split_runner(sys.argv)
        config, options = command_line.parse_with(arguments, {"report": False, "out": ""}, HELP)
        if options["out"] and not options["report"]:
            raise UsageError(f"--out={options['out']} says where a report goes; add --report. {HELP}")
        if options["report"] and (runner or beam_options):
            raise UsageError(f"--report reads a store that is there, without a runner; leave out --runner. {HELP}")
        if options["report"]:
            run_report(config, options["out"])
        else:
            run(config, Runner(runner or PROCESSES.name, tuple(beam_options)))
        return 0
    except UserError as error:
        print(f"anchorjax.cli.prepare: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("anchorjax.cli.prepare: stopped; run again to go on", file=sys.stderr)
        return 1


def run(config: Config, runner: Runner = PROCESSES) -> None:
    """Raises UsageError, ConfigError, WeightsError or DataError; see `preparing.prepare`."""
    from anchorjax.training import setup  # not in the worker processes, which import this module

    completed = setup.complete(config, setup.find_pretrained(config))
    line = ProgressLine()
    try:
        indices = preparing.prepare(completed.data, line.show, runner)
    finally:
        line.close()
    print(summary(config.data.store, indices), flush=True)


def run_report(config: Config, out: str) -> None:
    """Raises ConfigError, WeightsError, UsageError or DataError; see `report.make`."""
    from anchorjax.pages import store as report
    from anchorjax.training import setup

    completed = setup.complete(config, setup.find_pretrained(config))
    command = shlex.join(["python", "-m", "anchorjax.cli.prepare", *sys.argv[1:]])
    print(f"report      {report.make(completed, command, out)}", flush=True)


class ProgressLine:
    """One line on stderr: renewed every second on a terminal, printed every 30 seconds elsewhere."""

    def __init__(self):
        self._started = self._printed = time.perf_counter()
        self._first: State | None = None
        self._shown = False

    def show(self, state: State) -> None:
        now = time.perf_counter()
        self._first = self._first or state
        rate = (state.tokens - self._first.tokens) / max(1e-9, now - self._started)
        text = f"{state.done} of {state.total} shards, {state.tokens:,} tokens, {rate:,.0f} tokens/s"
        if sys.stderr.isatty():
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = True
        elif now - self._printed > 30:
            print(text, file=sys.stderr, flush=True)
            self._printed = now

    def close(self) -> None:
        if self._shown:
            print(file=sys.stderr)


def summary(store: str, indices: dict[str, Index]) -> str:
    lines = []
    for split, index in indices.items():
        lines.append(f"{split:<12}{index.num_tokens:,} tokens in {index.num_documents:,} documents")
        for name, documents, tokens in zip(
            index.source_names, index.source_documents, index.source_tokens, strict=True
        ):
            lines.append(f"            {name}: {tokens:,} in {documents:,}")
    index = indices["train"]
    reasons = preparing.describe(index.bad_rows, index.bad_places)
    bad = f"{sum(index.bad_rows.values()):,} of {index.rows:,}"
    lines.append(f"bad rows    {bad}; {reasons}" if reasons else f"bad rows    {bad}")
    lines += [f"{what:<12}{text}" for what, text in remarks.of(index)]
    return "\n".join([*lines, f"store       {store}/: {', '.join(f'{split}/' for split in indices)}"])


if __name__ == "__main__":
    sys.exit(main())
