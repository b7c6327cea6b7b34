import jax
import pytest

from anchorjax import sharding


@pytest.fixture
def one_device():
    """An explicit mesh of one device, as everywhere."""
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh
