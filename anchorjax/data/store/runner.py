"""Who tokenizes the shards of a preparation."""

import dataclasses

from anchorjax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Runner:
    """`processes`, or a runner of Apache Beam with its pipeline options."""

    name: str
    options: tuple[str, ...] = ()  # as Beam's command lines have them: --direct_num_workers=2

    def __post_init__(self):
        if self.name == "processes" and self.options:
            option = self.options[0].removeprefix("--")
            raise UsageError(f"--beam.{option} needs a runner of Beam, such as --runner=DirectRunner")


PROCESSES = Runner("processes")  # of this machine, `data.workers` of them: see processes.py
