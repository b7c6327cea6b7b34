"""Every target and every implementation has default tiles that its kernels take."""

import pytest

from anchorjax import targets
from anchorjax.attention.pallas_tpu.tile import LANES
from anchorjax.attention.tiles import default_tiles
from anchorjax.types import IMPLEMENTATIONS


@pytest.mark.parametrize(
    ("kind", "target"), [("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e")]
)
def test_a_device_and_its_target_agree(kind, target):
    assert default_tiles("pallas_tpu", kind) == default_tiles("pallas_tpu", target)


@pytest.mark.parametrize("target", [*targets.TPUS, "TPU of tomorrow"])
def test_a_tpu_takes_its_tiles(target):
    assert all(side % LANES == 0 for side in default_tiles("pallas_tpu", target))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_implementation_has_tiles(implementation):
    assert all(side > 0 for side in default_tiles(implementation, "cpu"))
