"""How long devices take to exchange bytes along axes of a mesh: over a torus, a switch, or the network between hosts.

The mesh says where its devices lie, and with it what an axis may use:

    torus     an axis of the mesh that extends over some dimensions of a TPU slice uses the links of these: both ways
              where the ring is closed, one way where it is a line, whose end has one neighbour. Two devices of a chip
              are taken for neighbours with a link
    switch    GPUs of a node, any with any
    network   between slices or nodes. A sum or a gather crosses it once for all devices of a group in one slice or
              node, which share the work; an all-to-all and a permutation cross it for each

In a torus an all-to-all and a permutation to all distances pass devices in between: half of what each half of the
longest dimension has crosses its middle. Latencies are left out, and so is what other axes send over the same links at
the same time.

Source: "How to Scale Your Model", jax-ml.github.io/scaling-book/sharding.
"""

import dataclasses
import functools
import math
from collections import Counter

import numpy as np
from jax.sharding import Mesh

from anchorjax import targets
from anchorjax.plan.hardware import Hardware

SUMS = ("all-gather", "reduce-scatter", "all-reduce")  # the others send each byte to one device
CUBE = 4  # chips along a side of the cubes that optical switches join to a torus


@dataclasses.dataclass(frozen=True)
class Group:
    """Devices that exchange along some axes of a mesh: the slowest of such groups.

    Attributes:
      size: number of devices.
      slices: number of slices or nodes that they are in.
      extents: for each dimension of the torus along which the devices of a slice lie, its chips and whether it is a
        closed ring; () for GPUs.
      per_chip: number of these devices on one chip.
      hardware: of a device.
    """

    size: int
    slices: int
    extents: tuple[tuple[int, bool], ...]
    per_chip: int
    hardware: Hardware

    @property
    def crosses(self) -> bool:
        """Whether the network joins them."""
        return self.slices > 1

    @property
    def inside_bytes_per_s(self) -> float:
        """Rate at which a device receives a gather's bytes from its slice or node, over all links of its chip."""
        return self.hardware.link_bytes_per_s * self.per_chip * max(1, sum(1 + closed for _, closed in self.extents))

    @property
    def how(self) -> str:
        """What carries the bytes."""
        over = []
        if self.size > self.slices:
            shapes = Counter(f"{'ring' if closed else 'line'} of {count}" for count, closed in self.extents)
            over = [_counted(number, shape) for shape, number in shapes.items()] or ["NVLink"]
        if self.crosses:
            over.append(f"the network of {self.slices} {'slices' if self.hardware.is_tpu else 'nodes'}")
        return " and ".join(over)

    def seconds(self, kind: str, received: float) -> float:
        """Time in which each device receives `received` bytes from the others, by the collective's kind."""
        if self.size == 1:
            return 0.0
        each = self.size / self.slices
        inside = received * (each - 1) / (self.size - 1)  # of an all-to-all, and of a permutation to all distances
        outside = received - inside
        if kind in SUMS:
            inside = received if each > 1 else 0.0
            outside /= each
        local = inside / self.inside_bytes_per_s
        if kind not in SUMS:
            whole = inside * each / max(1, each - 1)  # with the share that a device keeps
            halves = [whole * count / 4 / (1 + closed) for count, closed in self.extents]
            local = max([local * self.per_chip, *(half / self.hardware.link_bytes_per_s for half in halves)])
        return max(local, outside / self.hardware.network_bytes_per_s)


def _counted(number: int, shape: str) -> str:
    return f"a {shape}" if number == 1 else f"{number} {shape.replace(' ', 's ', 1)}"


class Links:
    """The groups of one mesh on one target.

    Args:
      mesh: whose devices have `coords` (TPUs) or are numbered node by node (GPUs).
      hardware: of a device.
    """

    def __init__(self, mesh: Mesh, hardware: Hardware):
        self._names, self._devices, self._hardware = mesh.axis_names, mesh.devices, hardware
        self.group = functools.cache(self._group)

    def _group(self, axes: tuple[str, ...]) -> Group:
        """The slowest group along these axes."""
        along = [self._names.index(name) for name in axes]
        others = [place for place in range(self._devices.ndim) if place not in along]
        count = math.prod(self._devices.shape[place] for place in along)
        rows = self._devices.transpose(*others, *along).reshape(-1, count)
        found = {self._describe(row) for row in rows}
        return min(found, key=lambda group: (-group.slices, group.inside_bytes_per_s))

    def _describe(self, devices: np.ndarray) -> Group:
        if not self._hardware.is_tpu:
            nodes = len({device.id // targets.NODE for device in devices})
            return Group(len(devices), nodes, (), 1, self._hardware)
        slices = {getattr(device, "slice_index", None) for device in devices}
        here = [device.coords for device in devices if getattr(device, "slice_index", None) == min(slices, key=str)]
        extents = [len(set(places)) for places in zip(*here, strict=True)]
        lines = ((extent, self._is_ring(axis, extent)) for axis, extent in enumerate(extents))
        lines = tuple(line for line in lines if line[0] > 1) or ((2, False),)  # two devices of one chip
        per_chip = len(here) // len(set(map(tuple, here)))
        return Group(len(devices), len(slices), lines if len(here) > 1 else (), per_chip, self._hardware)

    def _is_ring(self, axis: int, extent: int) -> bool:
        whole, full = self._slice, self._hardware.full_ring
        is_torus = self._hardware.torus_axes == 2 or all(side % CUBE == 0 for side in whole)
        return extent == whole[axis] and extent % full == 0 and is_torus

    @functools.cached_property
    def _slice(self) -> tuple[int, ...]:
        """Chips along each dimension of the slice."""
        return tuple(len(set(places)) for places in zip(*(d.coords for d in self._devices.flat), strict=True))
