"""Which links an axis of a mesh uses, and how long its exchanges take over them, by hand."""

import types

import numpy as np
import pytest

from anchorjax.plan import hardware
from anchorjax.plan.links import Links

AXES = ("data", "fsdp", "context", "tensor")


def torus(mesh_shape, chips, slices=1, order=None):
    """A mesh whose devices fill slices of a torus, the last dimension fastest, unless `order` says otherwise."""
    places = [(index, coords) for index in range(slices) for coords in np.ndindex(*chips)]
    devices = np.empty(len(places), object)
    devices[:] = [types.SimpleNamespace(coords=coords, slice_index=index) for index, coords in places]
    if order:
        devices = devices.reshape(*chips).transpose(order).reshape(-1)
    return types.SimpleNamespace(devices=devices.reshape(mesh_shape), axis_names=AXES)


def gpus(mesh_shape):
    devices = np.empty(int(np.prod(mesh_shape)), object)
    devices[:] = [types.SimpleNamespace(id=number) for number in range(len(devices))]
    return types.SimpleNamespace(devices=devices.reshape(mesh_shape), axis_names=AXES)


def test_a_closed_ring_receives_both_ways_and_a_line_one_way():
    v5p = hardware.HARDWARE["v5p"]  # 100 GB/s a link
    links = Links(torus((1, 4, 16, 1), (4, 4, 4)), v5p)
    fsdp, context = links.group(("fsdp",)), links.group(("context",))
    assert fsdp.how == "a ring of 4" and fsdp.seconds("all-gather", 1e9) == pytest.approx(1e9 / 200e9)
    assert context.how == "2 rings of 4"
    assert context.seconds("all-reduce", 1e9) == pytest.approx(1e9 / 400e9)
    half = Links(torus((1, 2, 4, 1), (2, 2, 2)), v5p)
    assert half.group(("fsdp",)).how == "a line of 2"  # below a cube nothing is closed
    assert half.group(("fsdp",)).seconds("all-gather", 1e9) == pytest.approx(1e9 / 100e9)


def test_v5e_closes_rings_of_16_only():
    v5e = hardware.HARDWARE["v5e"]  # 50 GB/s a link
    whole = Links(torus((1, 16, 16, 1), (16, 16)), v5e).group(("context",))
    part = Links(torus((1, 8, 8, 1), (8, 8)), v5e).group(("context",))
    assert (whole.how, part.how) == ("a ring of 16", "a line of 8")
    assert whole.seconds("all-gather", 1e9) == pytest.approx(1e9 / 100e9)
    # Each of 16 devices on a ring exchanges a 15th of 1 GB with each other: 8 x 8 such parts cross the middle each way,
    # over two links. On a line of 8 it is 4 x 4 sevenths over one.
    assert whole.seconds("all-to-all", 1e9) == pytest.approx(8 * 8 * 1e9 / 15 / 2 / 50e9)
    assert part.seconds("all-to-all", 1e9) == pytest.approx(4 * 4 * 1e9 / 7 / 50e9)


def test_slices_and_nodes_are_joined_by_the_network():
    v5e = hardware.HARDWARE["v5e"]  # 3.125 GB/s a chip
    links = Links(torus((2, 8, 8, 1), (8, 8), slices=2), v5e)
    assert links.group(("data",)).crosses and not links.group(("fsdp", "context")).crosses
    assert links.group(("data",)).seconds("all-reduce", 1e9) == pytest.approx(1e9 / 3.125e9)
    h100 = hardware.HARDWARE["h100"]  # 450 GB/s in a node, 50 between nodes
    links = Links(gpus((1, 8, 8, 1)), h100)
    assert links.group(("context",)).how == "NVLink"
    assert links.group(("context",)).seconds("all-gather", 1e9) == pytest.approx(1e9 / 450e9)
    assert links.group(("fsdp",)).how == "the network of 8 nodes"
    assert links.group(("fsdp",)).seconds("all-gather", 1e9) == pytest.approx(1e9 / 50e9)


def test_devices_of_a_node_share_what_the_network_brings_of_a_gather_but_not_of_an_all_to_all():
    h100 = hardware.HARDWARE["h100"]
    group = Links(gpus((1, 1, 64, 1)), h100).group(("context",))
    assert (group.size, group.slices) == (64, 8)
    outside = 1e9 * 56 / 63  # from other nodes
    assert group.seconds("all-to-all", 1e9) == pytest.approx(outside / 50e9)
    assert group.seconds("all-gather", 1e9) == pytest.approx(max(outside / 8 / 50e9, 1e9 / 450e9))


def test_the_slowest_group_counts_and_one_device_exchanges_nothing():
    v5p = hardware.HARDWARE["v5p"]
    links = Links(torus((1, 8, 8, 1), (4, 4, 4)), v5p)
    assert links.group(("fsdp",)).inside_bytes_per_s == 300e9  # a ring of 4 and half a ring
    assert links.group(("tensor",)).seconds("all-reduce", 1e9) == 0
    uneven = Links(gpus((1, 4, 6, 1)), hardware.HARDWARE["h100"])  # devices 0 to 5 share a node, and 6 to 11 do not
    assert uneven.group(("context",)).slices == 2


def test_two_devices_of_a_chip_share_its_links():
    tpu7x = hardware.HARDWARE["tpu7x"]  # 50 GB/s a device and link
    pair = torus((1, 1, 2, 1), (2, 1, 1))
    for device in pair.devices.flat:
        device.coords = (0, 0, 0)
    group = Links(pair, tpu7x).group(("context",))
    assert group.seconds("all-gather", 1e9) == pytest.approx(1e9 / 100e9)
    ring = torus((1, 1, 8, 1), (8, 1, 1))
    for number, device in enumerate(ring.devices.flat):
        device.coords = (number // 2, 0, 0)
    # The chip receives once what both devices need.
    assert Links(ring, tpu7x).group(("context",)).inside_bytes_per_s == 100e9
