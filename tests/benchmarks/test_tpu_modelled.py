"""benchmarks/tpu_modelled.py: its rows, its count of tiles and its formula; what it finds is not a test's business."""

from collections import Counter

import numpy as np
import pytest

from benchmarks import tpu_modelled
from benchmarks.schedules import Body, Schedule


@pytest.mark.parametrize("pool", tpu_modelled.POOLS)
def test_rows_are_anchored_documents_and_always_the_same(pool):
    segment_ids = tpu_modelled.rows(pool, 4096)
    np.testing.assert_array_equal(segment_ids, tpu_modelled.rows(pool, 4096))
    assert segment_ids.shape == (tpu_modelled.ROWS, 4096)
    assert (segment_ids[:, 0] == 0).all() and (segment_ids[:, 1] == 1).all()
    assert set(np.diff(segment_ids).ravel()) == {0, 1}


def test_tiles_are_those_of_the_plan():
    """Two documents of two tiles each: the anchor's tile and the two diagonals need a mask."""
    row = np.repeat([0, 1, 2], [1, 255, 256])[None]
    assert tpu_modelled.tally(row, 128, 128) == tpu_modelled.Tally(whole=1, masked=5, q_tiles=4, kv_tiles=4)


def test_cycles_take_the_larger_of_bundles_and_bound():
    """v5e, 512 x 512: the bound is 1024 cycles forward."""
    schedule = Schedule((Body(1000, Counter()), Body(1100, Counter())), per_step=10, per_stretch=100)
    tally = tpu_modelled.Tally(whole=3, masked=2, q_tiles=7, kv_tiles=0)
    schedules = {(512, 512): {"forward": schedule}}
    assert tpu_modelled.cycles("v5e", schedules, "forward", (512, 512), tally) == 3 * 1024 + 2 * 1100 + 5 * 10 + 7 * 100
