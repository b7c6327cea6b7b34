"""Facts of the hardware: one entry for each target, with numbers that agree with one another."""

import pytest

from anchorjax import targets
from anchorjax.models import flops
from anchorjax.plan import hardware

ALL = sorted(hardware.HARDWARE)


def test_every_target_has_an_entry():
    assert set(ALL) == {*targets.TPUS, *targets.GPUS}


@pytest.mark.parametrize("target", ALL)
def test_numbers_are_in_order(target):
    """Memory is faster than links, links than networks; a chip's peak is the maker's."""
    facts = hardware.HARDWARE[target]
    assert facts.hbm_bytes_per_s > facts.link_bytes_per_s > facts.network_bytes_per_s > 1e9
    assert facts.peak_flops == flops.PEAK_TFLOPS[facts.device_kind] * 1e12
    assert 100 < facts.peak_flops / facts.hbm_bytes_per_s < 600  # FLOPs a byte
    assert (facts.mem_fraction is None) == facts.is_tpu == bool(facts.full_ring)


def test_a_tpu7x_chip_is_two_devices():
    facts = hardware.of("tpu7x:4x4x4")
    assert facts.peak_flops * facts.devices_per_chip == 2307e12
    assert facts.link_bytes_per_s * 2 == hardware.of("v5p:4x4x4").link_bytes_per_s


def test_table_has_a_line_for_each_target_with_chips_memory_and_peak():
    lines = hardware.table()
    assert [line.split()[0] for line in lines] == list(hardware.HARDWARE)
    v5p = next(line for line in lines if line.split()[0] == "v5p")
    assert "102.8 GB" in v5p and "459.0 bf16 TFLOP/s" in v5p and "4x4x4 (64)" in v5p
    assert "2 devices a chip" in next(line for line in lines if "tpu7x" in line)


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="target 'v9:2x2' is unknown"):
        hardware.of("v9:2x2")
