"""A run's training step, compiled for hardware that is not here.

    targets.prepare()  # before JAX is first used
    config, mesh = step.prepare(config, "h100:8")
    compiled = step.compile(config, mesh)

It is the step that training runs, with its donated state; nothing is computed.
"""

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from anchorjax import attention, compiler_flags, sharding, targets
from anchorjax.config import KEYS, Config, resolve
from anchorjax.config.recipes import load
from anchorjax.masks import anchors_of
from anchorjax.plan import buffers, memory
from anchorjax.plan.buffers import Allocation
from anchorjax.training.optimizer import make_optimizer, make_schedule
from anchorjax.training.state import init_state
from anchorjax.training.step import Steps
from anchorjax.types import Batch


def prepare(config: Config, hardware: str) -> tuple[Config, Mesh]:
    """The configuration with attention's implementation and tiles for the hardware, and its mesh there.

    Args:
      config: with the sizes of the model.
      hardware: a name of `targets.Topology`.

    Raises:
      ValueError: unknown hardware.
      MissingCompiler: its compiler is not installed.
      ConfigError: shapes that do not divide over the devices, or tiles that the implementation does not take.
    """
    found, config = targets.devices(hardware), config.completed()
    chosen = attention.choose(config.attention, config.data.seq_len, found[0])
    shape = config.check_devices(len(found))
    mesh = sharding.make_mesh(shape, found[: math.prod(shape.values())])
    return dataclasses.replace(config, attention=chosen), mesh


def recipe(name: str, changes: Mapping[str, Any] | None = None) -> Config:
    """A recipe with some keys changed, as in {"mesh.context": 1}. Raises UsageError or ConfigError."""
    config = load(name)
    with config.unlocked():
        config.update_from_flattened_dict(dict(changes or {}))
    return resolve(config.to_dict())


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy with some keys changed, as in {"mesh.context": 1}. Raises ConfigError."""
    values = config.to_dict()
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        (values[section] if section else values)[key] = value
    return resolve(values)


def changes_of(text: str) -> dict[str, Any]:
    """Keys with their values, from "section.key=value section.key=value"."""
    pairs = (change.split("=", 1) for change in text.split())
    return {name: json.loads(value) if KEYS[name].type is not str else value for name, value in pairs}


def lower(config: Config, mesh: Mesh) -> jax.stages.Lowered:
    """The donated training step, lowered for the mesh's devices; `config` is what `prepare` returned."""
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    schedule = make_schedule(config.optimizer, config.train.steps)
    steps = Steps(config, anchors_of(config.data.mask), optimizer, schedule)
    rows = config.data.batch_size, config.data.seq_len
    with jax.set_mesh(mesh):
        state = sharding.abstract(lambda: init_state(config.seed, steps.spec, steps.optimizer))
        array = lambda dtype: jax.ShapeDtypeStruct(rows, dtype, sharding=NamedSharding(mesh, sharding.BATCH))  # noqa: E731
        dtypes = ("bool" if field.name.startswith("is_") else "int32" for field in dataclasses.fields(Batch))
        batch = Batch(*map(array, dtypes))
        return jax.jit(steps.train, donate_argnums=0).lower(state, batch)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program, and the memory that its compiler assigned to its buffers."""

    program: jax.stages.Compiled
    allocations: tuple[Allocation, ...]

    def as_text(self) -> str:
        """The optimized HLO."""
        return self.program.as_text()

    def memory_analysis(self) -> Any:
        """Bytes of arguments, results and temporaries; `memory.of` says more."""
        return self.program.memory_analysis()


def compile(config: Config, mesh: Mesh) -> Compiled:
    """That step compiled with the options of `train.compiler_flags`.

    Raises:
      TooLarge: the compiler finds no room for the program in a device's memory. Those for TPUs say so; those for GPUs
        and CPUs compile programs of any size.
    """
    flags = compiler_flags.options(config.train.compiler_flags, mesh.devices.flat[0])
    lowered = lower(config, mesh)
    with tempfile.TemporaryDirectory() as directory:
        try:
            program = lowered.compile(compiler_options=flags | {"xla_dump_to": directory})
        except jax.errors.JaxRuntimeError as error:
            if sizes := memory.refusal(str(error)):
                raise memory.TooLarge(*sizes, _assigned(directory)) from error
            raise
        return Compiled(program, tuple(buffers.read(Path(directory))))


def _assigned(directory: str) -> tuple[Allocation, ...]:
    """The buffers of a program that was refused, if they had been assigned by then."""
    try:
        return tuple(buffers.read(Path(directory)))
    except FileNotFoundError:
        return ()
