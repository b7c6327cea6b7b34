"""Checkpoints: the one module that knows Orbax.

A checkpoint is a step directory with two items: `state`, the leaves of the TrainState by name, and `meta`,
JSON with the format number, the configuration, the place in the data and a digest of each leaf. Saves run in
the background; a step directory gets its final name only when it is whole, so a kill leaves the checkpoint
before it. Resume takes the newest step that can be read in full and whose leaves have their digests, and says
so when it has to pass one over; what was passed over is renamed, never deleted, as Orbax saves no step below
one that exists.
"""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from anchorjax.errors import CheckpointError
from anchorjax.models.layers import named_leaves
from anchorjax.training.digest import digests
from anchorjax.training.state import TrainState

FORMAT = 2
_DIGITS = 8  # of a step directory's name
_policies = ocp.checkpoint_managers

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DataPosition:
    """Where the data stands: the training row that comes next, and the stores of both splits."""

    next_row: int
    fingerprint: str
    held_out_fingerprint: str


class Checkpoints:
    """The checkpoints of one working directory."""

    def __init__(self, workdir: Path, *, keep: int, read_only: bool = False):
        options = ocp.CheckpointManagerOptions(
            # The loop decides when to save; policies here would count the forced saves as their own.
            save_decision_policy=_policies.FixedIntervalPolicy(1),
            preservation_policy=_policies.LatestN(keep),
            step_format_fixed_length=_DIGITS,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        self._read_only = read_only
        self.directory = (workdir / "checkpoints").absolute()
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: TrainState, config: dict[str, Any], data: DataPosition) -> None:
        """Starts a save; returns once the state is copied, so the next step may reuse its buffers.

        An earlier save's failure is raised here or in `close`, never swallowed.
        """
        leaves = named_leaves(state)
        meta = {"format": FORMAT, "step": step, "config": config, "data": dataclasses.asdict(data)}
        meta["digests"] = digests(leaves)
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(meta))
        if not self._manager.save(step, args=args):
            raise CheckpointError(f"step {step} was not saved: {self.directory} already holds a later one")

    def restore_latest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest readable checkpoint as (state, meta), or None if there is none at all.

        Args:
          like: an abstract state whose shapes, dtypes and shardings the result takes (any mesh).

        Raises:
          CheckpointError: checkpoints are there, but none can be read; training from scratch would lose them.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for place, step in enumerate(steps):
            try:
                restored = self._restore(step, like)
                self._set_aside(steps[:place])
                return restored
            except Exception as error:  # damage surfaces as whatever Orbax's parser trips over
                reason = str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
                log.warning("checkpoint %d in %s cannot be read and is passed over: %s", step, self.directory, reason)
        if steps:
            raise CheckpointError(f"none of the checkpoints {sorted(steps)} in {self.directory} can be read")
        return None

    def _restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if meta["format"] != FORMAT:
            raise ValueError(f"its format is {meta['format']}, this version reads {FORMAT}")
        target = named_leaves(like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        leaves = self._manager.restore(step, args=args).state
        changed = [name for name, digest in digests(leaves).items() if digest != meta["digests"][name]]
        if changed:
            raise ValueError(f"not what was saved: {', '.join(changed)}")
        return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in target]), meta

    def _set_aside(self, steps: list[int]) -> None:
        if self._read_only or not steps:
            return
        for step in steps:
            path = self.directory / f"{step:0{_DIGITS}d}"
            path.rename(path.with_name(f"unreadable-{path.name}-{time.time_ns()}"))
        self._manager.reload()

    def wait(self) -> None:
        """Waits for the save under way and raises if it failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()
