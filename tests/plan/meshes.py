"""Meshes of simulated devices, and of any objects."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from anchorjax import sharding
from anchorjax.config import Config


def mesh_of(config: Config, num_devices: int) -> Mesh:
    return sharding.make_mesh(config.check_devices(num_devices), jax.devices()[:num_devices])


@dataclasses.dataclass(frozen=True, eq=False)
class FakeMesh:
    """A mesh of objects that are no devices of JAX; hashable, as `Mesh` is."""

    devices: np.ndarray
    axis_names: tuple[str, ...] = sharding.AXES

    @property
    def shape(self) -> dict[str, int]:
        return dict(zip(self.axis_names, self.devices.shape, strict=True))
