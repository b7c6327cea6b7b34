"""Groups of devices, from every way in which XLA prints them, and the axes of the mesh along which they exchange."""

import math
import types

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from anchorjax.plan.groups import axes_of, groups

PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))
FAR = ((0, 4), (1, 5), (2, 6), (3, 7))
PRINTED = {
    "replica_groups={{0,1},{2,3},{4,5},{6,7}}, use_global_device_ids=true": PAIRS,
    "replica_groups=[4,2]<=[8], use_global_device_ids=true": PAIRS,
    "replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}": FAR,
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}": PAIRS,
    "replica_groups=mesh['a'=2,'b'=4]{'a'}, to_apply=%add": FAR,
    "replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, to_apply=%add": PAIRS,
    "replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, to_apply=%add": ((0, 2), (1, 3), (4, 6), (5, 7)),
    "replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add": ((0, 1, 2, 3), (4, 5, 6, 7)),
    "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, to_apply=%add": FAR,
    "replica_groups=mesh['a'=4,'b'=2], device_ids=(7,6,5,4,3,2,1,0) {'b'}, x": ((7, 6), (5, 4), (3, 2), (1, 0)),
    "replica_groups={}, to_apply=%add": (tuple(range(8)),),
    "source_target_pairs={{0,2},{2,0}}, channel_id=4": ((0, 2), (2, 0)),
}


@pytest.mark.parametrize("text", PRINTED)
def test_every_print_form_is_read(text):
    assert groups(f"  %x = f32[8]{{0}} all-gather(%p), channel_id=1, {text}", 8) == PRINTED[text]


def test_unknown_groups_are_refused():
    with pytest.raises(ValueError, match="a collective whose groups are not known"):
        groups("%x = f32[8]{0} all-gather(%p), replica_groups=v3[x], dimensions={0}", 8)


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@settings(deadline=None)
@given(sizes, st.data())
def test_groups_along_some_axes_are_read_back_as_these_axes(shape, data):
    """Lists, a transposed iota and XLA's mesh say the same; an axis of one device is never named."""
    names = [f"axis_{place}" for place in range(len(shape))]
    along = sorted(data.draw(st.sets(st.sampled_from(range(len(shape))))))
    others = [place for place in range(len(shape)) if place not in along]
    count, order = math.prod(shape[place] for place in along), [*others, *along]
    wanted = np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1, count)
    text = lambda numbers: ",".join(map(str, numbers))  # noqa: E731
    declared = ",".join(f"'{name}'={size}" for name, size in zip(names, shape, strict=True))
    for printed in (
        "{" + ",".join("{" + text(group) + "}" for group in wanted) + "}",
        f"[{wanted.shape[0]},{count}]<=[{text(shape)}]T({text(order)})",
        f"mesh[{declared}] {{{','.join(repr(names[place]) for place in along)}}}",
    ):
        found = groups(f"replica_groups={printed}, x", math.prod(shape))
        assert found == tuple(map(tuple, wanted.tolist()))
        mesh = types.SimpleNamespace(devices=np.zeros(shape), axis_names=names)
        assert axes_of(found, mesh) == tuple(names[place] for place in along if shape[place] > 1)
