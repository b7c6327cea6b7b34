"""The cost of a tile of attention: the table against compiled schedules, and its use by hand."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from anchorjax import targets
from anchorjax.attention import pallas_tpu
from anchorjax.plan import hardware, tiles
from anchorjax.plan.tiles import Cost
from tests.compilers import require_compiler, run_program


def test_every_tpu_has_the_cost_of_its_default_tile():
    assert {(target, *pallas_tpu.default_tiles(target)) for target in targets.TPUS} == set(tiles.COST)


@pytest.mark.parametrize("target", sorted(targets.TPUS))
def test_a_tile_takes_no_less_than_the_matrix_units_need(target):
    (q_tile, kv_tile), cores = pallas_tpu.default_tiles(target), tiles.CORES[target]
    for which, cost in tiles.COST[target, q_tile, kv_tile].items():
        needed = tiles.flops(q_tile, kv_tile, tiles.WIDTH, {which: 1}) / tiles.FLOPS_PER_CYCLE[target]
        assert needed <= min(cost.whole, cost.masked) < 3.2 * needed
    facts = hardware.HARDWARE[target]
    assert tiles.clock(facts) * cores * tiles.FLOPS_PER_CYCLE[target] == pytest.approx(facts.peak_flops)
    assert 1e9 < tiles.clock(facts) < 2.3e9


def test_cycles_by_hand():
    found = {"forward": Cost(100, 110, 10, 5), "backward": Cost(200, 220, 20, 7)}
    lines = {"forward": 4, "backward": 3}
    assert tiles.cycles(found, {"forward": 1}, 6, 2, lines) == 6 * 100 + 2 * 110 + 8 * 10 + 4 * 5
    both = tiles.cycles(found, {"forward": 2, "backward": 1}, 6, 2, lines)
    assert both == 2 * 920 + 6 * 200 + 2 * 220 + 8 * 20 + 3 * 7


def test_a_tile_that_is_not_listed_costs_by_its_area():
    listed, scale = tiles.cost("v5p", 512, 512)
    assert (listed, scale) == (tiles.COST["v5p", 512, 512], 1)
    assert tiles.cost("v5p", 1024, 512) == (listed, 2)
    assert len(tiles.assumptions(hardware.HARDWARE["v5p"], "pallas_tpu", 1024, 512)) == 2


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 8).map(lambda n: 128 * n))
def test_the_tiles_on_the_diagonal_of_a_causal_row_need_a_mask(count, tile):
    live, tokens = count * (count + 1) / 2, count * tile
    masked = tiles.masked_share(tokens * (tokens + 1) / 2, live, tile, tile) * live
    assert masked == pytest.approx(count, rel=1 / tile + 1e-9)
    assert tiles.masked_share(live * tile * tile, live, tile, tile) == 0


PROGRAM = """
import dataclasses, importlib.metadata, json, sys, tempfile
from pathlib import Path
from anchorjax import targets
with tempfile.TemporaryDirectory() as directory:
    targets.prepare(dump_to=directory)
    from benchmarks.compiled.tpu_schedule import constants
    found = constants(Path(directory), sys.argv[1], tuple(map(int, sys.argv[2:])))
costs = {which: dataclasses.asdict(cost) for which, cost in found.items()}
print(json.dumps([importlib.metadata.version("libtpu"), costs]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(targets.TPUS))
def test_the_table_is_what_the_compiler_schedules(target):
    """To 1%, and to a third with another version of the compiler."""
    require_compiler(target)
    tile = pallas_tpu.default_tiles(target)
    version, found = run_program(PROGRAM, target, *tile)
    for which, cost in tiles.COST[target, *tile].items():
        assert found[which] == pytest.approx(vars(cost), rel=0.01 if version == tiles.LIBTPU else 0.33), which
