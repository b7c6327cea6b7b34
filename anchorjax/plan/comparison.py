"""The best candidates of a search, compiled: an estimate may be wrong about what fits, and knows no schedule."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from anchorjax.plan import progress, search
from anchorjax.plan.documents import Lengths
from anchorjax.plan.search import Candidate
from anchorjax.plan.timed import Timed, timed
from anchorjax.plan.trial import Trial


@dataclasses.dataclass(frozen=True)
class Contender:
    """A candidate, and what its compilation made of the estimate."""

    candidate: Candidate
    timed: Timed


def contenders(
    first: Trial, lengths: Lengths, best: int, compile: Callable[[Mapping[str, Any]], Trial]
) -> Iterator[Contender]:
    """Compiles the `best` candidates, in the order of their estimates.

    Args:
      first: of the configuration as it is.
      lengths: of the run's documents.
      compile: makes the trial of some changed keys.
    """
    with progress.shown("estimating candidates"):
        ranked = search.ranked(first.config, list(first.mesh.devices.flat), first.hardware, lengths)
    for candidate in ranked[:best]:
        trial = compile(candidate.changes) if candidate.changes else first
        yield Contender(candidate, timed(trial, lengths))
