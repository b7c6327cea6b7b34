"""Candidates of a search: each runs on the devices and trains the same model, and none that would run is left out."""

import itertools
import math
from types import SimpleNamespace

import pytest

from anchorjax.attention.parallel import STRATEGIES
from anchorjax.config import Config
from anchorjax.errors import ConfigError
from anchorjax.plan import search, step
from anchorjax.sharding import AXES
from tests.compilers import require_compiler, run_program

HOW_WORK_IS_CUT = {  # keys that change the order of sums alone
    *(f"mesh.{axis}" for axis in AXES),
    "mesh.context_strategy",
    "mesh.shard_weights_over",
    "model.remat",
    "train.grad_accum_steps",
}


def llama3_8b(**changes) -> Config:
    return step.recipe("llama3_8b_128k_anchor", changes).completed()


@pytest.mark.parametrize("devices", [8, 64, 512])
def test_a_candidate_runs_on_the_devices_and_cuts_the_work_alone(devices):
    config = llama3_8b()
    found = list(search.candidates(config, devices))
    assert len({tuple(sorted(changes.items())) for changes in found}) == len(found) > 100
    for changes in found:
        assert set(changes) == HOW_WORK_IS_CUT
        shape = step.changed(config, changes).check_devices(devices)
        assert math.prod(shape.values()) == devices


@pytest.mark.parametrize(("devices", "rows", "seq_len"), [(8, 4, 128), (6, 3, 96), (4, 1, 126)])
def test_no_configuration_that_would_run_is_left_out(devices, rows, seq_len):
    """All sizes of the axes are tried one by one, with every other key."""
    config = llama3_8b(**{"data.batch_size": rows, "data.seq_len": seq_len, "model.d_model": 96, "model.d_ff": 96})
    found = [tuple(sorted(changes.items())) for changes in search.candidates(config, devices)]
    sizes = [shape for shape in itertools.product(range(1, devices + 1), repeat=4) if math.prod(shape) == devices]
    assert sorted(found) == sorted(changes for shape in sizes for changes in running(config, devices, shape))


def running(config: Config, devices: int, sizes: tuple[int, ...]) -> list[tuple]:
    """What a run on a mesh of these sizes would start with; keys of `context` stay where it has one device."""
    mesh, found = {f"mesh.{axis}": size for axis, size in zip(AXES, sizes, strict=True)}, []
    for strategy, over, remat, parts in itertools.product(
        STRATEGIES, ("fsdp", "fsdp_context"), ("none", "attention", "full", "offload"), range(1, 5)
    ):
        changes = mesh | {"mesh.context_strategy": strategy, "mesh.shard_weights_over": over, "model.remat": remat}
        changes["train.grad_accum_steps"] = parts
        if mesh["mesh.context"] == 1 and (strategy, over) != ("all_gather", "fsdp"):
            continue
        try:
            changed = step.changed(config, changes)
            STRATEGIES[strategy].check(changed.model, changed.mesh, changed.check_devices(devices))
        except ConfigError:
            continue
        found.append(tuple(sorted(changes.items())))
    return found


def test_what_attention_refuses_is_no_candidate():
    """Otherwise the search would end with the error when it compiles the best ones."""
    gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    mesh = {"mesh.data": 1, "mesh.fsdp": 1, "mesh.context": 8, "mesh.tensor": 1, "mesh.context_layout": "zigzag"}
    config, found = llama3_8b(**mesh, **{"data.batch_size": 1}), search._Search([gpu], None, None)
    assert found.runs(config) and not found.runs(step.changed(config, {"data.seq_len": 2**17 + 8}))


PROGRAM = """
import dataclasses, json
from anchorjax import targets
targets.prepare()
from anchorjax.plan import documents, estimate, hardware, search, step
changes = step.changes_of(
    "model.num_layers=2 model.d_model=1024 model.d_ff=2048 model.num_heads=8 model.num_kv_heads=4 model.head_dim=128 "
    "model.vocab_size=8192 data.seq_len=8192 data.batch_size=2 model.remat=full"
)
config, mesh = step.prepare(step.recipe("llama3_8b_128k_anchor", changes | {"mesh.fsdp": 2}), "h100:4")
devices, lengths, gpu = list(mesh.devices.flat), documents.of_equal(8192, 8), hardware.of("h100:4")
every = [step.changed(config, changes) for changes in search.candidates(config, len(devices))]
needed = sorted(estimate.memory(one, search.shape_of(one)).total for one in every)
shown = lambda found: [
    {"changes": one.changes, "total": one.memory.total, "seconds": one.time.seconds, "cut": search.cut(one.config)}
    for one in found
]
rank = lambda limit: search.ranked(config, devices, dataclasses.replace(gpu, hbm_bytes=limit), lengths)
limits = [gpu.hbm_bytes, rank(gpu.hbm_bytes)[0].memory.total - 1, needed[0] - 1]
print(json.dumps([limits, [shown(rank(limit)) for limit in limits]]))
"""


def test_what_fits_is_ranked_by_its_modelled_step():
    require_compiler("h100")
    limits, (all_fit, some_fit, none_fits) = run_program(PROGRAM)
    assert none_fits == []
    for limit, found in zip(limits, (all_fit, some_fit), strict=False):
        assert 1 < len(found) <= search.CONTENDERS
        assert [one["seconds"] for one in found] == sorted(one["seconds"] for one in found)
        assert all(one["total"] <= limit for one in found)
        assert len({tuple(one["cut"]) for one in found}) == len(found), "of each cut the fastest alone"
    assert all_fit[0]["seconds"] < some_fit[0]["seconds"], "the best needed more than the limit"
    assert all_fit[0]["changes"]["model.remat"] == "none", "nothing is computed twice where all fits"
    same = {"mesh.data": 1, "mesh.fsdp": 2, "mesh.context": 2, "mesh.tensor": 1, "model.remat": "full"}
    for one in (*all_fit, *some_fit):
        assert not one["changes"].items() & same.items(), "only what differs is named"
