"""A configuration's mesh of simulated devices."""

import jax
from jax.sharding import Mesh

from anchorjax import sharding
from anchorjax.config import Config


def mesh_of(config: Config, num_devices: int) -> Mesh:
    return sharding.make_mesh(config.check_devices(num_devices), jax.devices()[:num_devices])
