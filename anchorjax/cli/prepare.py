"""Tokenizes documents into a store on disk, which training opens by memory map.

    anchorjax prepare --config=quickstart --config.data.source=jsonl:books --config.data.store=stores/books
    anchorjax train --config=quickstart --config.data.store=stores/books --workdir=runs/books

The tokenizer is the run's. `data.workers` processes share the work; the result is the same for any number. If it is
killed, the same command goes on with what is missing. It needs twice the space of the store. `--runner=NAME` names a
runner of Apache Beam instead, for many machines, and `--beam.OPTION=VALUE` sets an option of it. `anchorjax report
--store` describes a store that exists. Exit codes: 0 done, 1 failed, 2 bad input.
"""

import sys
import time
from collections.abc import Sequence

from anchorjax.config import Config, overrides
from anchorjax.config.options import Option
from anchorjax.data.store import preparing, remarks
from anchorjax.data.store.index import Index
from anchorjax.data.store.preparing import State
from anchorjax.data.store.runner import PROCESSES, Runner
from anchorjax.errors import UsageError, run_program

PROGRAM = "anchorjax prepare"
USAGE = "anchorjax prepare --config=quickstart [--config.KEY=VALUE ...] [--runner=NAME [--beam.OPTION=VALUE ...]]"
OPTIONS = {
    "runner": Option(
        PROCESSES.name,
        "data.workers processes of this machine, or a runner of Apache Beam, for many machines",
        what="NAME",
        once=True,
    ),
    "beam.": Option((), "an option of that runner, by Beam's name for it"),
}


def main(argv: Sequence[str]) -> int:
    return run_program(PROGRAM, lambda: prepare(argv), "stopped; run the same command to resume")


def prepare(argv: Sequence[str]) -> None:
    """Raises UserError for a bad command line; see `run` for the others."""
    config, options = overrides.parse(argv, OPTIONS, USAGE)
    if any(option.partition("=")[0] == "runner" for option in options["beam."]):
        raise UsageError("there must be one runner, written --runner=NAME")
    run(config, Runner(options["runner"], tuple(f"--{option}" for option in options["beam."])))


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
