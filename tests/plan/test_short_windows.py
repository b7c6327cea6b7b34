"""The short windows of LongCE in a plan: counted as the step cuts them, by hand in small cases, and nothing without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax.plan import documents, exchanges, hardware, schedule, short_windows, time, work
from anchorjax.plan.exchanges import Exchange
from anchorjax.sharding import abstract, shard_batch
from anchorjax.training.objectives.longce import in_documents
from anchorjax.training.state import init_state
from tests import tiny
from tests.plan.test_time import config_of, documents_of, mesh_of
from tests.training.making import make_batch, make_mesh, make_steps

LONGCE = {"train__objective": "longce", "train__longce_context": 1024, "train__longce_stride": 256}
ALONE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}


@pytest.mark.parametrize("options", [{}, {"interleave": 3}, {"mask": "full"}, {"packing": "best_fit"}])
def test_windows_of_rows_are_counted_as_the_step_cuts_them(options):
    config = config_of(data__seq_len=256, train__objective="longce", train__longce_context=20, train__longce_stride=7)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **options))
    lengths = documents.Lengths(np.random.default_rng(0).integers(1, 90, 300), "a test")
    packer, _ = documents._packer(config, lengths)
    for number in range(packer.rows_per_epoch):
        row = packer.row(number)
        arrays = row.tokens_T, row.targets_T, row.is_target_T, row.segment_ids_T, row.index_T
        *_, end_T, _, _ = in_documents(*map(jnp.asarray, arrays), 20, 7)
        assert documents.short_windows_of(row, config) == np.count_nonzero(end_T)
    found = documents.count(config, ALONE, lengths)
    assert found.short_windows > 3
    plain = dataclasses.replace(config, train=dataclasses.replace(config_of().train))
    assert documents.count(plain, ALONE, lengths) == dataclasses.replace(found, short_windows=0.0)


def test_groups_and_products_by_hand():
    """Eight rows of 8192 with 28 windows of 1280 tokens each, six windows a row of devices: 224 in 38 groups."""
    config = config_of(**LONGCE)
    found = dataclasses.replace(documents_of(config), short_windows=28.0)
    assert short_windows.groups(config, ALONE, found) == (38, 6)
    assert short_windows.groups(config, ALONE | {"fsdp": 2, "tensor": 2}, found) == (19, 12)
    accumulating = config_of(**LONGCE, train__grad_accum_steps=4)
    assert short_windows.groups(accumulating, ALONE, found) == (10, 6)
    (part,) = short_windows.parts(config, ALONE, hardware.HARDWARE["h100"], found)
    weights, words = 4 * (2 * 1024 * 128 * 12 + 3 * 1024 * 4096), 1024 * 32000
    products = 38 * 6 * 2 * (1280 * weights + 256 * words)
    # Tiles of 512: 1280 tokens are three, of which six pairs are live. Two matmuls of each.
    flops = 38 * 6 * 4 * 8 * 6 * 2 * 2 * 512 * 512 * 128
    peak = hardware.HARDWARE["h100"].peak_flops
    share = work.tiles.gpu_share("h100", "pallas_gpu")
    assert part.seconds == pytest.approx(products / (peak * 0.7) + flops / (peak * share), rel=1e-6)
    (cut,) = short_windows.parts(config, ALONE | {"fsdp": 2, "tensor": 2}, hardware.HARDWARE["h100"], found)
    assert cut.seconds == pytest.approx(part.seconds / 4), "the same windows on four devices"


def test_a_step_without_windows_has_no_such_part():
    config, mesh = config_of(), mesh_of(1, 4, 2, 1)
    made = time.model(config, mesh, hardware.HARDWARE["h100"], documents_of(config))
    assert not any("short windows" in part.name for part in made.parts)
    assert not any("LongCE" in line for line in made.assumptions)
    weighted = config_of(**LONGCE)
    of_rows = dataclasses.replace(documents_of(config), short_windows=28.0)
    longer = time.model(weighted, mesh, hardware.HARDWARE["h100"], of_rows)
    assert longer.seconds > made.seconds and longer.mfu < made.mfu
    assert any("28.0 short windows a row" in line and "not in MFU" in line for line in longer.assumptions)


def test_exchanges_of_a_program_are_those_of_one_group():
    config = config_of(**LONGCE)
    found = dataclasses.replace(documents_of(config), short_windows=28.0)
    of_group = Exchange("short windows", "all-gather", ("fsdp",), 5.0, True)
    once = Exchange("once", "all-reduce", ("data",), 1.0, False)
    made = short_windows.exchanges([of_group, once], config, ALONE, found, is_compiled=True)
    assert made == (dataclasses.replace(of_group, received=38 * 5.0), once)
    assert short_windows.exchanges([of_group, once], config, ALONE, documents_of(config), is_compiled=True) == (once,)
    assert exchanges.place_of("jit(train)/short_windows/while/body/jvp()/while/body/all_gather") == "short windows"


def test_by_formula_a_group_gathers_the_weights_once():
    config, shape = config_of(**LONGCE), {"data": 1, "fsdp": 4, "context": 2, "tensor": 1}
    found = dataclasses.replace(documents_of(config), short_windows=28.0)
    formula = exchanges.formula(config, shape)
    made = short_windows.exchanges(formula, config, shape, found, is_compiled=False)
    assert made[: len(formula)] == formula
    gathers = [one for one in made[len(formula) :] if one.axes == ("fsdp",)]
    (weights,) = (one for one in formula if (one.place, one.axes) == ("forward layer", ("fsdp",)))
    number, _ = short_windows.groups(config, shape, found)
    assert [one.received for one in gathers] == [pytest.approx(number * weights.received)]


def test_xlas_cycles_leave_windows_out():
    line = '  %fusion.1 = f32[8]{0} fusion(%p), metadata={op_name="jit(train)/SCOPE/add"}, "estimated_cycles":"70"\n'
    program = "ENTRY %main (p: f32[8]) -> f32[8] {{\n{}}}\n"
    both = program.format(line.replace("SCOPE", "short_windows/while/body") + line.replace("SCOPE", "other"))
    assert schedule.cycles(both).total == 70


def test_a_compiled_step_tells_which_exchanges_are_of_windows():
    """On eight devices: gathers of weights and of keys, in a loop within that of the micro-batches."""
    weighted = {"train__objective": "longce", "train__longce_context": 16, "train__longce_stride": 8}
    config = tiny.config(data__batch_size=4, train__grad_accum_steps=2, **weighted)
    steps, mesh = make_steps(config), make_mesh(1, 2, 2, 2)
    with jax.set_mesh(mesh):
        state, batch = (
            abstract(lambda: init_state(0, steps.spec, steps.optimizer)),
            shard_batch(make_batch(4, 64), mesh),
        )
        hlo = jax.jit(steps.train).lower(state, batch).compile().as_text()
    axes = {one.axes for one in exchanges.of(hlo, mesh) if one.place == short_windows.PLACE}
    assert {("fsdp",), ("context",)} <= axes
