"""Trains a model, or resumes a run: `anchorjax train --config=quickstart --workdir=runs/quickstart`.

`python train.py` is the same. Exit codes: 0 done, 1 failed, 2 bad configuration, 75 stopped by SIGTERM or Ctrl-C after
saving (run again to resume).
"""

import shlex
from collections.abc import Sequence
from typing import Any

from anchorjax import launch
from anchorjax.config import Config, overrides
from anchorjax.config.options import Option
from anchorjax.errors import DONE, PREEMPTED, UsageError
from anchorjax.parsing import is_address

BUCKETS = ("gs://", "s3://")
OPTIONS = {
    "workdir": Option(
        "", "the run's directory, which is created; a run that is in it is resumed", what="DIR", required=True
    ),
}


def main(argv: Sequence[str], program: str = "anchorjax train") -> int:
    """Returns the exit code; `program` is what was typed before the arguments, for records and messages."""
    usage = f"{program} --config=quickstart --workdir=runs/quickstart [--config.KEY=VALUE ...]"

    def train(parsed: tuple[Config, dict[str, Any]]) -> int:
        from anchorjax import accelerators
        from anchorjax.training import loop

        accelerators.warn_if_unused()
        config, options = parsed
        return loop.run(config, options["workdir"], shlex.join([*program.split(), *argv]))

    def parse() -> tuple[Config, dict[str, Any]]:
        config, options = overrides.parse(argv, OPTIONS, usage)
        if is_address(options["workdir"]) and not options["workdir"].startswith(BUCKETS):
            allowed = f"a path, or in an object store {' or '.join(BUCKETS)}BUCKET/RUN"
            raise UsageError(f"--workdir={options['workdir']} is not allowed: it must be {allowed}")
        return config, options

    return launch.run(program, parse, train, harmless=(DONE, PREEMPTED))
