"""What XLA's own cost model says of a compiled TPU program: cycles outside of kernels and collectives."""

import dataclasses
import functools
import re

from anchorjax.plan import program
from anchorjax.training.objectives.longce import SCOPE

_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_INVALID = 2**62  # what stands where there is no estimate


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Estimated cycles of a run of the program.

    Attributes:
      layers: in the loops over layers.
      rest: elsewhere.
    """

    layers: float
    rest: float

    @property
    def total(self) -> float:
        return self.layers + self.rest


@functools.lru_cache(maxsize=1)  # as in `exchanges.of`
def cycles(hlo: str) -> Cycles | None:
    """Estimates of all instructions, each as often as it runs; None where the compiler writes none, as for GPUs.

    A Pallas kernel, a collective and a sort have none. Instructions in a fusion are part of its estimate. The short
    windows of LongCE are left out (short_windows.py).
    """
    lines_of = program.computations(hlo)
    callers = program.callers_of(lines_of)
    times = program.times_of(lines_of, callers, program.main_of(hlo))
    inside = {name for name, found in callers.items() if all(fused for *_, fused in found)}
    layers = rest = 0.0
    for name, lines in lines_of.items():
        for line in lines if times[name] and name not in inside else ():
            match = _ESTIMATE.search(line)
            if match and int(match[1]) < _INVALID and f"/{SCOPE}/" not in line:
                count = int(match[1]) * times[name]
                is_layer = re.search(r'op_name="[^"]*jvp\(\)+/while/body', line)
                layers, rest = (layers + count, rest) if is_layer else (layers, rest + count)
    return Cycles(layers, rest) if layers + rest else None
