"""Trains a model, or resumes a run: `anchorjax train --config=quickstart --workdir=runs/quickstart`.

`python train.py` is the same. Exit codes: 0 done, 1 failed, 2 bad configuration, 75 stopped by SIGTERM or Ctrl-C after
saving (run again to resume).
"""

import shlex
from collections.abc import Sequence

from anchorjax.cli import command_line
from anchorjax.errors import run_program


def main(argv: Sequence[str], program: str = "anchorjax train") -> int:
    """Returns the exit code; `program` is what was typed before the arguments, for records and messages."""
    return run_program(program, lambda: train(argv, program))


def train(argv: Sequence[str], program: str) -> int:
    """Raises UserError; see `loop.run`."""
    config, workdir = command_line.parse([program, *argv])
    from anchorjax import accelerators  # jax takes a second to import: a typo is found before that
    from anchorjax.training import loop, processes

    processes.start()
    accelerators.warn_if_unused()
    return loop.run(config, workdir, shlex.join([*program.split(), *argv]))
