"""Training steps of several configurations, timed in turns in one process."""

import time
from collections.abc import Mapping

import jax
import numpy as np

from anchorjax.sharding import shard_batch
from anchorjax.training.setup import Setup
from anchorjax.training.step import Steps
from anchorjax.types import Batch


class Run:
    """A compiled training step, its state and one batch.

    Attributes:
      compiled: the step, of which XLA tells operations and FLOPs.
      metrics: of the newest step.
    """

    def __init__(self, setup: Setup, batch: Batch, steps: Steps | None = None):
        """`batch` is of numpy arrays; `steps` are the set-up's unless given. The first step is taken here."""
        self.mesh, self.metrics = setup.mesh, {}
        with jax.set_mesh(self.mesh):
            self.batch = shard_batch(batch, self.mesh)
            self.state = jax.jit(setup.make_state)()
            step = jax.jit((steps or setup.steps).train, donate_argnums=0)
            self.compiled = step.lower(self.state, self.batch).compile()
        self.step()

    def step(self) -> float:
        """Seconds of one step."""
        with jax.set_mesh(self.mesh):
            started = time.perf_counter()
            self.state, self.metrics = self.compiled(self.state, self.batch)
            jax.block_until_ready((self.state, self.metrics))
            return time.perf_counter() - started


def in_turns(runs: Mapping[str, Run], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of `repeats` steps of each run, all of them taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(run.step())
    return {name: np.array(times) for name, times in seconds.items()}
