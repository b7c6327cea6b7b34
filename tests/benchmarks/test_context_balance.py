"""benchmarks/context_balance.py: its counts against the plan's, and the balance that it is to show."""

import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax.attention.plan import classify_tiles
from anchorjax.data.rows import balance
from anchorjax.data.rows.balance import Layout
from anchorjax.masks import Mask
from benchmarks import context_balance as lib

T, C = 2**14, 4


@pytest.fixture(scope="module")
def row() -> np.ndarray:
    return lib.draw_row(np.random.default_rng(3), T)


@pytest.mark.parametrize("layout", lib.LAYOUTS.values())
def test_loads_and_pairs_are_those_of_the_plan(layout, row):
    layout = Layout(layout, C, lib.TILE)
    order_T = layout.order(row)
    assert row.shape == (T,) and row[0] == 0 and set(np.diff(row)) == {0, 1}
    segments_BT, index_BT = (jnp.asarray(x)[None] for x in (row[order_T], order_T))
    live_IJ = np.asarray(
        classify_tiles(Mask.from_segments(segments_BT, 1, index_BT=index_BT), lib.TILE, lib.TILE)[0][0]
    )
    assert lib.loads(row, order_T, (lib.TILE, lib.TILE), layout).tolist() == live_IJ.reshape(C, -1).sum(1).tolist()
    by_device = live_IJ.reshape(C, T // lib.TILE // C, C, -1).any((1, 3))
    assert lib.pairs(row, order_T, C) == by_device.mean()


def test_balance_of_rows_of_128k():
    """The target: the most loaded device has at most 1.08 times the mean."""
    rng = np.random.default_rng(0)
    rows = [lib.draw_row(rng, 2**17) for _ in range(24)]
    for devices in lib.SHARDS:
        found = lib.of_shards(rows, devices)
        assert found["balanced"] < 1.08 < found["zigzag"] < found["contiguous"]
        assert found["full"]["balanced"] < 1.01 and found["full"]["contiguous"] > 1.8
        assert found["batch"]["balanced"] < found["batch"]["contiguous"]


def test_choices_have_the_figures_of_the_layout_where_they_are_its_own(row):
    found, wanted = lib.choices([row] * lib.BATCH, C), lib.of_shards([row] * lib.BATCH, C)
    own = found[f"{balance.CHUNKS} chunks, slack {balance.SLACK}"]
    assert own == {"balance": wanted["balanced"], "ring": wanted["ring"]["balanced"]}
    assert found["4 chunks, slack 0.1"] != own


def test_dealt_rows_wait_less():
    work_R = np.random.default_rng(0).exponential(1, 100)
    for B, parts in lib.BATCHES:
        found = lib.waits(work_R, B, 8, parts, draws=50)
        assert 1 <= found["dealt"] <= found["drawn"]
        assert (found["dealt"] < found["drawn"]) == (B > 8)
