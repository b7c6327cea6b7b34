"""A compiled configuration with the rows and the modelled step of its run."""

import dataclasses

from anchorjax.plan import documents, progress, time
from anchorjax.plan.documents import Documents, Lengths
from anchorjax.plan.time import StepTime
from anchorjax.plan.trial import Trial


@dataclasses.dataclass(frozen=True)
class Timed:
    """A trial, the rows of its run, and the time of its step, None if it does not fit."""

    trial: Trial
    documents: Documents
    time: StepTime | None

    @property
    def seconds(self) -> float:
        """Seconds of a step; infinite if it does not fit."""
        return self.time.seconds if self.time else float("inf")


def timed(trial: Trial, lengths: Lengths) -> Timed:
    with progress.shown("packing rows"):
        found = documents.count(trial.config, trial.mesh.shape, lengths)
    if not trial.fits:
        return Timed(trial, found, None)
    return Timed(trial, found, time.model(trial.config, trial.mesh, trial.hardware, found, trial.hlo))
