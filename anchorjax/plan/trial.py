"""One configuration, compiled for the hardware: does its step fit into the memory of a device?"""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from anchorjax.config import Config
from anchorjax.config.manual import written
from anchorjax.errors import first_line
from anchorjax.plan import progress, step
from anchorjax.plan.hardware import Hardware
from anchorjax.training import setup

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A compiled configuration.

    Attributes:
      changes: keys that differ from the configuration that was asked for.
      config: with attention's implementation and tiles.
      hbm_bytes: that the step needs of one device; 0 if the compiler refused the step without saying so.
      host_bytes: that it needs of the host's memory for one device.
      refusal: the compiler's words, if it gave up for lack of memory.
      hlo: the optimized program; "" if there is none.
      seconds: that the compilation took.
    """

    changes: Mapping[str, Any]
    config: Config
    mesh: Mesh
    hardware: Hardware
    hbm_bytes: float
    host_bytes: float
    refusal: str
    hlo: str
    seconds: float

    @property
    def fits(self) -> bool:
        is_small = self.hbm_bytes <= self.hardware.hbm_bytes and self.host_bytes <= self.hardware.host_bytes
        return not self.refusal and is_small


def run(config: Config, target: str, hardware: Hardware, changes: Mapping[str, Any]) -> Trial:
    """Compiles `config` with some keys changed, and says so on stderr.

    Raises:
      ConfigError: keys that the hardware or the model does not take.
      JaxRuntimeError: the compiler fails for another reason than memory.
    """
    changed, mesh = step.prepare(step.changed(config, changes), target)
    setup.check_attention(changed, mesh.shape, mesh.devices.flat[0])
    started, hbm_bytes, host_bytes, refusal, hlo = time.perf_counter(), 0, 0, "", ""
    with progress.shown(f"compiling for {target}{with_keys(changes)}"):
        try:
            compiled = step.compile(changed, mesh)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refusal, hbm_bytes = first_line(error), needed(str(error))
        else:
            memory, hlo = compiled.memory_analysis(), compiled.as_text()
            beside = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            hbm_bytes = memory.argument_size_in_bytes + beside
            host_bytes = memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes
    seconds = time.perf_counter() - started
    return Trial(changes, changed, mesh, hardware, hbm_bytes, host_bytes, refusal, hlo, seconds)


def with_keys(changes: Mapping[str, Any]) -> str:
    """ " with model.remat=full train.grad_accum_steps=2", or nothing."""
    return "".join([" with" * bool(changes), *(f" {name}={written(value)}" for name, value in changes.items())])


def needed(refusal: str) -> float:
    """Bytes that a compiler says it would need, as in "Used 42.51G of 15.75G hbm"; 0 if it does not say."""
    match = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", refusal)
    return float(match[1]) * _UNITS[match[2]] if match else 0
