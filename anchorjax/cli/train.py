"""Trains a model, or resumes a run: `anchorjax train --config=quickstart --workdir=runs/quickstart`.

`python train.py` is the same. Exit codes: 0 done, 1 failed, 2 bad configuration, 75 stopped by SIGTERM or Ctrl-C after
saving (run again to resume).
"""

import shlex
from collections.abc import Sequence

from anchorjax.config import overrides
from anchorjax.config.options import Option
from anchorjax.errors import run_program

OPTIONS = {
    "workdir": Option(
        "", "the run's directory, which is created; a run that is in it is resumed", what="DIR", required=True
    ),
}


def main(argv: Sequence[str], program: str = "anchorjax train") -> int:
    """Returns the exit code; `program` is what was typed before the arguments, for records and messages."""
    return run_program(program, lambda: train(argv, program))


def train(argv: Sequence[str], program: str) -> int:
    """Raises UserError; see `loop.run`."""
    usage = f"{program} --config=quickstart --workdir=runs/quickstart [--config.KEY=VALUE ...]"
    config, options = overrides.parse(argv, OPTIONS, usage)
    from anchorjax import accelerators, processes  # jax takes a second to import: a typo is found before that
    from anchorjax.training import loop

    processes.start()

    def job() -> int:
        accelerators.warn_if_unused()
        return loop.run(config, options["workdir"], shlex.join([*program.split(), *argv]))

    return processes.ended(lambda: run_program(program, job), harmless=(loop.DONE, loop.PREEMPTED))
