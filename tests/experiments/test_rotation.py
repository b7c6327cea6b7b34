"""Tables of every precision: what is rounded, and how wrong that makes them."""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from anchorjax import sharding
from anchorjax.config import RopeConfig
from anchorjax.experiments.rope_precision import rotation
from anchorjax.experiments.rope_precision.rotation import PRECISIONS
from configs import common

H = 128
KNOWN = {(1e4, 2**12): 2.3e-4, (5e6, 2**16): 4.6e-3, (1e7, 2**17): 4.2e-3, (1e9, 2**20): 7.6e-2}  # max |cos error|


def config(**changes) -> RopeConfig:
    return RopeConfig(**(common.base().rope.to_dict() | {"theta": 1e4, "scaling": "none"} | changes))


def tables(name: str, positions, length: int, **changes):
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    place = jax.NamedSharding(mesh, sharding.BATCH)
    with jax.set_mesh(mesh):
        positions_BT = jax.device_put(np.array([positions], np.int32), place)
        pair = rotation.tables(positions_BT, length, H, config(**changes), PRECISIONS[name], local=False)
        assert all(x.dtype == np.float32 and x.sharding.spec == PartitionSpec(*sharding.BATCH, None) for x in pair)
        return [np.asarray(x)[0] for x in pair]


@pytest.mark.parametrize(("theta", "length"), KNOWN)
def test_errors_of_cosines(theta, length):
    errors = rotation.table_errors(config(theta=theta), H, [length])
    assert errors["float64 phases"][0] < 2e-7
    assert errors["float32 phases"][0] == pytest.approx(KNOWN[theta, length], rel=0.4)  # of all positions to here
    assert 1e-3 < errors["bfloat16 tables"][0] <= 2**-9 + 1e-6  # ties, rounded to fp32 before


def test_float32_phases_are_rounded_twice_and_nothing_else_is():
    positions = [0, 1, 16, 4099, 2**20 - 1]
    frequency_h = np.float32(1e4 ** (-np.arange(0, H, 2) / H))
    phases = [[float(np.float32(np.float32(p) * f)) for f in frequency_h] for p in positions]
    for ours, function in zip(tables("fp32-phases32", positions, 2**20), (np.cos, np.sin), strict=True):
        np.testing.assert_array_equal(ours, function(np.array(phases)).astype(np.float32))


def test_scalings_are_those_of_the_model():
    changes = {"theta": 5e5, "scaling": "linear", "factor": 4.0}
    exact, rounded = (tables(name, range(0, 4000, 7), 4000, **changes)[0] for name in ("fp32", "fp32-phases32"))
    np.testing.assert_allclose(rounded, exact, atol=1e-4)
    plain = tables("fp32", range(0, 4000, 7), 4000, theta=5e5)[0]
    assert np.abs(plain - exact).max() > 1


@pytest.mark.parametrize("name", ["bf16-tables", "bf16-rotation"])
def test_bfloat16_tables_are_exact_ones_rounded_once(name):
    for ours, exact in zip(*(tables(x, range(99), 99) for x in (name, "bf16")), strict=True):
        np.testing.assert_array_equal(ours, exact.astype(ml_dtypes.bfloat16).astype(np.float32))
        assert np.abs(ours - exact).max() > 1e-3
