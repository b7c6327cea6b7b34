"""Configurations for given hardware, ranked by estimate: what `anchorjax plan --search` compares.

A candidate differs from the run's configuration in how the work is cut alone: the mesh, the context strategy, which
axes share the weights, what the backward pass recomputes, and the number of micro-batches. Rows, sequence length, model
and optimizer stay, so that each candidate trains the same model up to the order of floating-point sums.

Memory and time are estimated in milliseconds for each, without compiling. The planner then compiles the best few, as an
estimate may be wrong about what fits.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from anchorjax import sharding
from anchorjax.attention.parallel import STRATEGIES
from anchorjax.config import KEYS, Config
from anchorjax.data.rows.balance import Layout
from anchorjax.errors import ConfigError
from anchorjax.plan import documents, estimate, step, time
from anchorjax.plan.documents import Documents, Lengths
from anchorjax.plan.hardware import Hardware
from anchorjax.plan.memory import Memory
from anchorjax.plan.time import StepTime
from anchorjax.sharding import AXES
from anchorjax.training import setup
from anchorjax.types import CONTEXT_STRATEGIES

CONTENDERS = 12  # candidates whose own balance is counted, which takes seconds for each layout of rows


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A configuration that fits by estimate.

    Attributes:
      changes: keys that differ from the run's configuration.
      config: with the changes.
      memory: estimated.
      time: modelled, with exchanges by formula.
    """

    changes: Mapping[str, Any]
    config: Config
    memory: Memory
    time: StepTime


def ranked(config: Config, devices: Sequence[jax.Device], hardware: Hardware, lengths: Lengths) -> list[Candidate]:
    """At most CONTENDERS candidates that fit by estimate, the one with the shortest modelled step first.

    Of those that cut rows, tokens and heads alike, by the same strategy, only the fastest is returned: the model is not
    exact enough to order them. All are modelled with the balance of the run's own mesh, and the best again with theirs.

    Args:
      config: with attention's implementation and tiles, as `step.prepare` returns it.
      devices: compile-only ones of the hardware.
      lengths: of the run's documents.
    """
    given = config.check_devices(len(devices))
    search = _Search(devices, hardware, lengths)
    own, fastest = search.documents(config, given), {}
    for changes in candidates(config, len(devices)):
        changed = step.changed(config, changes)
        if not search.runs(changed):
            continue
        memory = estimate.memory(changed, shape_of(changed))
        if memory.total <= hardware.hbm_bytes and memory.host <= hardware.host_bytes:
            made = Candidate(differing(changes, config, given), changed, memory, search.time(changed, own))
            fastest[cut(changed)] = min(made, fastest.get(cut(changed), made), key=_seconds)
    best = sorted(fastest.values(), key=_seconds)[:CONTENDERS]
    counted = [(one, search.documents(one.config, shape_of(one.config))) for one in best]
    return sorted((dataclasses.replace(one, time=search.time(one.config, own)) for one, own in counted), key=_seconds)


def cut(config: Config) -> tuple[int, int, int, str]:
    """Into how many parts a candidate cuts rows, tokens and heads, and the strategy."""
    shape = shape_of(config)
    return shape["data"] * shape["fsdp"], shape["context"], shape["tensor"], config.mesh.context_strategy


def candidates(config: Config, devices: int) -> Iterator[dict[str, Any]]:
    """The keys of each candidate that divides over so many devices, with the values that the configuration has too.

    Args:
      config: with the sizes of the model; keys that are not a candidate's stay, `mesh.slices` among them.
    """
    rows = config.data.batch_size
    for shape in meshes(config, devices):
        alone = shape["context"] == 1
        for strategy, over, remat, parts in itertools.product(
            [config.mesh.context_strategy] if alone else CONTEXT_STRATEGIES,
            ["fsdp"] if alone else ["fsdp", "fsdp_context"],
            KEYS["model.remat"].choices,
            divisors(rows // (shape["data"] * shape["fsdp"])),
        ):
            mesh = shape | {"context_strategy": strategy, "shard_weights_over": over}
            changes = {f"mesh.{name}": value for name, value in mesh.items()}
            changes |= {"model.remat": remat, "train.grad_accum_steps": parts}
            if divides(step.changed(config, changes), devices):
                yield changes


def meshes(config: Config, devices: int) -> Iterator[dict[str, int]]:
    """Sizes of the axes whose product is `devices`, with rows for all devices along data and fsdp."""
    for data, fsdp, context in itertools.product(divisors(devices), repeat=3):
        tensor, left = divmod(devices, data * fsdp * context)
        if tensor and not left and config.data.batch_size % (data * fsdp) == 0:
            yield dict(zip(AXES, (data, fsdp, context, tensor), strict=True))


def divides(config: Config, devices: int) -> bool:
    """Whether the model and the rows divide over the mesh of so many devices."""
    try:
        shape = config.check_devices(devices)
        STRATEGIES[config.mesh.context_strategy].check(config.model, config.mesh, shape)
    except ConfigError:
        return False
    return True


def differing(changes: Mapping[str, Any], config: Config, shape: Mapping[str, int]) -> dict[str, Any]:
    """Those of the changes that differ from the configuration, whose mesh has this shape."""
    values = config.to_dict()
    values["mesh"] |= shape
    return {name: value for name, value in changes.items() if value != _value(values, name)}


def shape_of(config: Config) -> dict[str, int]:
    """The mesh of a candidate, which leaves no axis open."""
    return {axis: getattr(config.mesh, axis) for axis in AXES}


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


class _Search:
    """What candidates share: the hardware, meshes of a shape, and documents of a layout."""

    def __init__(self, devices: Sequence[jax.Device], hardware: Hardware, lengths: Lengths):
        self._devices, self._hardware, self._lengths = devices, hardware, lengths
        self._documents: dict[Layout, Documents] = {}
        self._meshes: dict[tuple[int, ...], Mesh] = {}

    def runs(self, config: Config) -> bool:
        """Whether attention takes the configuration on this hardware."""
        try:
            setup.check_attention(config, shape_of(config), self._devices[0])
        except ConfigError:
            return False
        return True

    def documents(self, config: Config, shape: Mapping[str, int]) -> Documents:
        layout = setup.layout(config, shape)
        if layout not in self._documents:
            self._documents[layout] = documents.count(config, shape, self._lengths)
        return self._documents[layout]

    def time(self, config: Config, counted: Documents) -> StepTime:
        shape = shape_of(config)
        sizes = tuple(shape.values())
        if sizes not in self._meshes:
            self._meshes[sizes] = sharding.make_mesh(shape, self._devices)
        return time.model(config, self._meshes[sizes], self._hardware, counted)


def _value(values: Mapping[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    return values[section][key]


def _seconds(one: Candidate) -> float:
    return one.time.seconds
