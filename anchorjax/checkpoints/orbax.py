"""Checkpoints: the one module that knows Orbax.

A checkpoint is a step directory with two items: `state`, the leaves of the TrainState by name, and `meta`,
JSON with the format number, the configuration, the place in the data and a digest of each leaf. Saves run in
the background; a step directory gets its final name only when it is whole, so a kill leaves the checkpoint
before it. Resume takes the newest step that can be read in full and whose leaves have their digests, and says
so when it has to pass one over; what was passed over is renamed, never deleted, as Orbax saves no step below
one that exists.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from anchorjax import processes
from anchorjax.checkpoints.digest import digests
from anchorjax.errors import CheckpointError, PeerError, WorkdirError, first_line
from anchorjax.models.linear import named_leaves
from anchorjax.parsing import is_address

FORMAT = 2
_WEIGHTS = "params."  # in front of their names in a TrainState
_DIGITS = 8  # of a step directory's name
_policies = ocp.checkpoint_managers
# What damaged files lead to: they are missing, or Orbax's parsers, tensorstore or this module trip over their content.
_DAMAGE = (
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError, EOFError),
    *(ValueError, LookupError, TypeError, AttributeError),
)
# A ValueError of tensorstore begins with its status: these are of memory, permissions, disks and networks.
_NO_DAMAGE = (
    *("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("ABORTED", "CANCELLED", "UNKNOWN", "INTERNAL"),
)

log = logging.getLogger(__name__)

State = TypeVar("State")  # any pytree of arrays: training's TrainState, for one


@dataclasses.dataclass(frozen=True)
class DataPosition:
    """Where the data stands: the training row that comes next, and the stores of both splits."""

    next_row: int
    fingerprint: str
    held_out_fingerprint: str


def bytes_of_largest(tree: Any) -> int:
    """The size of the largest leaf, as float32 if it is narrower: a checkpoint may hold it so."""
    return max(x.size * max(4, x.dtype.itemsize) for x in jax.tree.leaves(tree))


class Checkpoints:
    """The checkpoints of one working directory."""

    def __init__(self, workdir: Path, *, keep: int, read_only: bool = False, host_bytes: int | None = None):
        """
        Args:
          workdir: may be a path of etils.epath, in an object store.
          keep: how many of them stay.
          read_only: nothing is saved, moved or removed.
          host_bytes: how much of a state may be between disk and devices at once, at least `bytes_of_largest`. What is
            saved must then stay as it is until `wait`, and is not compressed: the C library keeps half as much memory
            again for that. None copies all of it first, and reads all at once.
        """
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
        checkpoints = workdir / "checkpoints"
        self.directory = checkpoints if is_address(str(checkpoints)) else checkpoints.absolute()
        limit = None if host_bytes is None else (host_bytes + 1) / 10**9  # Orbax wants room to spare
        tree = ocp.PyTreeCheckpointHandler(
            save_concurrent_gb=limit,
            save_device_host_concurrent_gb=limit,
            restore_concurrent_gb=limit,
            use_compression=limit is None,
        )
        handlers = {"state": tree, "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        self._reader = self._manager if processes.count() == 1 else self._read_alone(handlers)

    def _read_alone(self, handlers: dict[str, Any]) -> ocp.CheckpointManager:
        """A manager that reads without the job's other processes; `processes.together` brings them together.

        After each read Orbax waits for all processes, and one that has found damage would never come.
        """
        options = ocp.CheckpointManagerOptions(
            step_format_fixed_length=_DIGITS,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=None, active_processes={jax.process_index()}
            ),
        )
        return ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, config: dict[str, Any], data: DataPosition | None) -> None:
        """Starts a save; returns once the state is copied, so the next step may reuse its buffers.

        An earlier save's failure is raised here or in `close`, never swallowed.
        """
        leaves = named_leaves(state)
        meta = {"format": FORMAT, "step": step, "config": config, "data": data and dataclasses.asdict(data)}
        meta["digests"] = digests(leaves)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(leaves), meta=ocp.args.JsonSave(meta))
        if not self._manager.save(step, args=args):
            raise CheckpointError(f"step {step} was not saved: {self.directory} already holds a later one")

    def restore_latest(self, like: State) -> tuple[State, dict[str, Any]] | None:
        """The newest readable checkpoint as (state, meta), or None if there is none at all.

        Args:
          like: an abstract state whose shapes, dtypes and shardings the result takes (any mesh).

        Raises:
          CheckpointError: checkpoints are there, but none can be read; training from scratch would lose them. Or one
            cannot be read for another reason than damage (memory, a permission, the network), or by some of the job's
            processes alone: it may be whole, and stays.
        """
        steps = processes.value_of_main(lambda: sorted(self._manager.all_steps(), reverse=True))
        for place, step in enumerate(steps):
            try:
                restored = self._restore(step, like)
            except Exception as error:
                # A PeerError: some processes alone cannot read it.
                if processes.anywhere(isinstance(error, PeerError) or not _is_damage(error)):
                    raise self._unreadable(step, error) from error
                reason = first_line(error)[:200]
                log.warning("checkpoint %d in %s cannot be read and is passed over: %s", step, self.directory, reason)
                continue
            self._set_aside(steps[:place])
            return restored
        if steps:
            raise CheckpointError(f"none of the checkpoints {sorted(steps)} in {self.directory} can be read")
        return None

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """One checkpoint as (state, meta); `like` as for `restore_latest`.

        Raises:
          CheckpointError: it cannot be read. Others are not tried: the caller asked for this one.
        """
        try:
            return self._restore(step, like)
        except Exception as error:  # damage surfaces as whatever Orbax's parser trips over
            raise self._unreadable(step, error) from error

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending. Raises WorkdirError if there is none."""
        steps = processes.value_of_main(lambda: sorted(self._manager.all_steps()))
        if not steps:
            raise WorkdirError(f"there is no checkpoint in {self.directory.parent}")
        return steps

    def weights_id(self, step: int) -> str:
        """The step and a digest of its weights. Raises CheckpointError if the checkpoint cannot be read."""
        try:
            return weights_id(self._meta(step))
        except Exception as error:  # damage surfaces as whatever Orbax's parser trips over
            raise self._unreadable(step, error) from error

    def restore_weights(self, like: Mapping[str, jax.Array], step: int | None = None) -> dict[str, jax.Array]:
        """The weights alone of one checkpoint, by name.

        Args:
          like: (abstract or real) arrays by name; results take their shapes, shardings and dtypes.
          step: None takes the newest.

        Raises:
          WorkdirError: there is none.
          CheckpointError: it lacks one of these weights or has others, or cannot be read. Others are not looked at:
            the caller asked for this one.
        """
        steps = self.steps()
        step = steps[-1] if step is None else step
        if step not in steps:
            raise CheckpointError(f"there is no checkpoint of step {step} in {self.directory.parent}; allowed: {steps}")
        prefixed = {_WEIGHTS + name: leaf for name, leaf in like.items()}
        try:
            meta, saved = processes.together(lambda: (self._meta(step), self._reader.item_metadata(step).state))
            weights = {name for name in saved if name.startswith(_WEIGHTS)}
            if differ := weights ^ prefixed.keys():
                raise ValueError(f"{sorted(differ)[0]} is in one of checkpoint and configuration alone")
            # In the dtype that was saved, so that the digests can be compared.
            target = {
                name: jax.ShapeDtypeStruct(leaf.shape, saved[name].dtype, sharding=leaf.sharding)
                for name, leaf in prefixed.items()
            }
            leaves = self._leaves(step, target, meta)
        except Exception as error:  # damage surfaces as whatever Orbax's parser trips over
            raise self._unreadable(step, error) from error
        return {name.removeprefix(_WEIGHTS): x.astype(prefixed[name].dtype) for name, x in leaves.items()}

    def _unreadable(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(f"checkpoint {step} in {self.directory} cannot be read: {first_line(error)[:200]}")

    def _restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        meta, target = processes.together(lambda: self._meta(step)), named_leaves(like)
        leaves = self._leaves(step, target, meta)
        return jax.tree.unflatten(jax.tree.structure(like), leaves.values()), meta

    def _meta(self, step: int) -> dict[str, Any]:
        meta = self._reader.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if meta["format"] != FORMAT:
            raise ValueError(f"its format is {meta['format']}, this version reads {FORMAT}")
        return meta

    def _leaves(self, step: int, target: dict[str, Any], meta: dict[str, Any]) -> dict[str, jax.Array]:
        """Some of a checkpoint's leaves, or all, in the order of `target`."""
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(target, restore_args, partial_restore=len(target) < len(meta["digests"]))
        read = functools.partial(self._reader.restore, step, args=ocp.args.Composite(state=args))
        leaves = processes.together(read).state  # a process may find damage in its part of an array
        changed = [name for name, digest in digests(leaves).items() if digest != meta["digests"][name]]
        if changed:
            raise ValueError(f"not what was saved: {', '.join(changed)}")
        return {name: leaves[name] for name in target}

    def _set_aside(self, steps: list[int]) -> None:
        if self._read_only or not steps:
            return

        def rename() -> None:
            for step in steps:
                path = self.directory / f"{step:0{_DIGITS}d}"
                path.rename(path.with_name(f"unreadable-{path.name}-{time.time_ns()}"))

        processes.on_main(rename)
        self._manager.reload()

    def wait(self) -> None:
        """Waits for the save under way and raises if it failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()


def _is_damage(error: BaseException) -> bool:
    """Whether the error may come from damaged files, and not from this machine."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_damage, error.exceptions))
    if type(error) is Exception:  # in which Orbax wraps what a read of an array raised
        return error.__cause__ is not None and _is_damage(error.__cause__)
    return isinstance(error, _DAMAGE) and not str(error).startswith(_NO_DAMAGE)


def weights_id(meta: Mapping[str, Any]) -> str:
    """A checkpoint's step and eight hexadecimal digits of a digest of its weights, from its `meta`."""
    weights = sorted(item for item in meta["digests"].items() if item[0].startswith(_WEIGHTS))
    return f"{meta['step']}-{hashlib.sha256(json.dumps(weights).encode()).hexdigest()[:8]}"
