"""A recipe's training step, compiled for hardware that is not here: what the scripts beside this one look at.

    targets.prepare()  # before JAX is first used
    config, mesh = recipe_step.prepare("llama3_8b_128k_anchor", "h100:8", {"model.remat": "full"})
    compiled = recipe_step.compile_step(config, mesh)

It is the step that training runs, with its donated state; nothing is computed.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from anchorjax import compiler_flags, sharding, targets
from anchorjax.attention import MODULES
from anchorjax.config import KEYS, Config, resolve
from anchorjax.config.recipes import load
from anchorjax.masks import anchors_of
from anchorjax.training.optimizer import make_optimizer, make_schedule
from anchorjax.training.state import init_state
from anchorjax.training.step import Steps
from anchorjax.types import Batch


def prepare(recipe: str, hardware: str, changes: Mapping[str, Any] | None = None) -> tuple[Config, Mesh]:
    """A shipped recipe with some keys changed, as in {"mesh.context": 1}, and its mesh on the hardware.

    Attention is the hardware's kernel with its own tiles, unless `changes` says otherwise. `hardware` is a name of
    `targets.Topology`.

    Raises:
      ValueError: unknown hardware.
      MissingCompiler: its compiler is not installed.
      ConfigError: an impossible value, or shapes that do not divide over the devices.
    """
    found, changes = targets.devices(hardware), dict(changes or {})
    implementation = "pallas_tpu" if found[0].platform == "tpu" else "pallas_gpu"
    config = load(recipe)
    with config.unlocked():
        seq_len = changes.get("data.seq_len", config.data.seq_len)
        tiles = MODULES[implementation].default_tiles(found[0].device_kind, seq_len)
        kernel = {"implementation": implementation, "q_tile": tiles[0], "kv_tile": tiles[1]}
        config.update_from_flattened_dict({f"attention.{name}": value for name, value in kernel.items()})
        config.update_from_flattened_dict(changes)
    resolved = resolve(config.to_dict()).completed()
    shape = resolved.check_devices(len(found))
    return resolved, sharding.make_mesh(shape, found[: math.prod(shape.values())])


def changes_of(step: str) -> dict[str, Any]:
    """Keys with their values, from "section.key=value section.key=value"."""
    pairs = (change.split("=", 1) for change in step.split())
    return {name: json.loads(value) if KEYS[name].type is not str else value for name, value in pairs}


def lower_step(config: Config, mesh: Mesh) -> jax.stages.Lowered:
    """The donated training step of the recipe, lowered for the mesh's devices."""
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


def compile_step(config: Config, mesh: Mesh) -> jax.stages.Compiled:
    """That step compiled with the options of `train.compiler_flags`."""
    flags = compiler_flags.options(config.train.compiler_flags, mesh.devices.flat[0])
    return lower_step(config, mesh).compile(compiler_options=flags)
