"""One configuration, compiled for the hardware: does its step fit into the memory of a device?"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from anchorjax.config import Config
from anchorjax.config.manual import written
from anchorjax.plan import memory, progress, step
from anchorjax.plan.hardware import Hardware
from anchorjax.plan.memory import Memory, TooLarge
from anchorjax.training import setup


@dataclasses.dataclass(frozen=True)
class Trial:
    """A compiled configuration.

    Attributes:
      changes: keys that differ from the configuration that was asked for.
      config: with attention's implementation and tiles.
      memory: of a device; None if the compiler refused the step before it knew.
      refused: bytes of a device without which the compiler refuses the step; 0 if it does not.
      hlo: the optimized program; "" if there is none.
      seconds: that the compilation took.
    """

    changes: Mapping[str, Any]
    config: Config
    mesh: Mesh
    hardware: Hardware
    memory: Memory | None
    refused: int
    hlo: str
    seconds: float

    @property
    def hbm_bytes(self) -> int:
        """What the step needs of a device."""
        return max(self.refused, self.memory.total if self.memory else 0)

    @property
    def host_bytes(self) -> int:
        """What it needs of the host's memory for one device."""
        return self.memory.host if self.memory else 0

    @property
    def fits(self) -> bool:
        is_small = self.hbm_bytes <= self.hardware.hbm_bytes and self.host_bytes <= self.hardware.host_bytes
        return is_small and not self.refused


def run(config: Config, target: str, hardware: Hardware, changes: Mapping[str, Any]) -> Trial:
    """Compiles `config` with some keys changed, and says so on stderr.

    Raises:
      ConfigError: keys that the hardware or the model does not take.
      MissingCompiler: the compiler for the hardware is not installed.
    """
    changed, mesh = step.prepare(step.changed(config, changes), target)
    setup.check_attention(changed, mesh.shape, mesh.devices.flat[0])
    started = time.perf_counter()
    with progress.shown(f"compiling for {target}{with_keys(changes)}"):
        try:
            compiled = step.compile(changed, mesh)
        except TooLarge as error:
            found = memory.of(error) if error.allocations else None
            refused, hlo = error.needed, ""
        else:
            found, refused, hlo = memory.of(compiled), 0, compiled.as_text()
    return Trial(changes, changed, mesh, hardware, found, refused, hlo, time.perf_counter() - started)


def with_keys(changes: Mapping[str, Any]) -> str:
    """ " with model.remat=full train.grad_accum_steps=2", or nothing."""
    return "".join([" with" * bool(changes), *(f" {name}={written(value)}" for name, value in changes.items())])
