"""Hardware by its name, and the mesh of every recipe on all of it that the recipe is meant for; nothing is compiled."""

import json
import subprocess
import sys

import jax
import pytest

from anchorjax.targets import SLICES, TPUS, Topology
from tests.compilers import require_compiler, run_program
from tests.training.jobs import ROOT

# Of each mesh: its shape; whether it has each device once; the most slices, nodes, and chips of the bounding box (on a
# TPU) among the groups of devices that share a row's tokens, which are those along context and tensor.
PROGRAM = """
import dataclasses, json, math, sys
from anchorjax import targets
targets.prepare()
import numpy as np
from jax.sharding import AxisType
from anchorjax import sharding
from anchorjax.config import recipes, resolve

def box(group):
    coords = np.array([device.coords for device in group])
    return math.prod((coords.max(0) - coords.min(0) + 1).tolist())

def facts(config, devices):
    shape = config.check_devices(len(devices))
    mesh = sharding.make_mesh(shape, devices)
    assert dict(mesh.shape) == shape and set(mesh.axis_types) == {AxisType.Explicit}
    groups = mesh.devices.reshape(shape["data"] * shape["fsdp"], -1)
    tpu = devices[0].platform == "tpu"
    return {
        "shape": shape, "every": set(mesh.devices.flat) == set(devices),
        "slices": max(sharding.count_slices(group) for group in groups),
        "nodes": max(len({device.process_index for device in group}) for group in groups),
        "box": max(map(box, groups)) if tpu else 0,
        "chips": len({tuple(d.coords) for d in groups[0]}) if tpu else 0,
    }

names, found = json.loads(sys.argv[1]), {}
shipped = {name: resolve(recipes.load(name).to_dict()) for name in recipes.shipped()}
for name in names:
    devices = targets.devices(name)
    found[name], made = {}, {}
    for recipe, config in shipped.items():
        paper = config.mesh.fsdp == 8
        given = dataclasses.replace(config.mesh, slices=sharding.count_slices(devices) if paper else 1)
        config = dataclasses.replace(config, mesh=given)
        here = devices if paper else devices[: config.data.batch_size]
        key = tuple(config.check_devices(len(here)).values())
        if key not in made:
            made[key] = facts(config, here)
        found[name][recipe] = made[key]
print(json.dumps(found))
"""


def names(target: str) -> list[str]:
    """Topologies of 64 to 512 chips."""
    if target not in TPUS:
        return [f"{target}:{size}" for size in (64, 128, 256, 512)]
    first, second, *_ = sizes = SLICES[target]
    return [
        *(f"{target}:{size}" for size in sizes),
        *(f"{n}x{target}:{first}" for n in (2, 4, 8)),
        f"2x{target}:{second}",
    ]


@pytest.mark.parametrize("target", [*TPUS, "a100", "h100"])
def test_every_recipe_has_a_mesh_on_the_hardware_that_it_is_meant_for(target):
    require_compiler(target)
    found = run_program(PROGRAM, json.dumps(names(target)))
    assert set(found) == set(names(target))
    for name, recipes in found.items():
        assert {"quickstart", "llama3_8b_128k_anchor", "llama2_7b_64k_full"} <= set(recipes)
        for recipe, mesh in recipes.items():
            where = f"{recipe} on {name}: {mesh}"
            context = mesh["shape"]["context"]
            assert mesh["every"], where
            assert mesh["slices"] == 1, where  # a row's tokens never cross the network between slices
            if target in TPUS:
                assert mesh["box"] == mesh["chips"], where  # neighbours on the torus
            else:
                assert mesh["nodes"] == -(-context // 8), where  # as few nodes as hold so many GPUs
        assert max(mesh["shape"]["context"] for mesh in recipes.values()) >= 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9", "target 'v9' is unknown; there are v4,"),
        ("v9:2x2", "target 'v9:2x2' is unknown"),
        ("v5p:8x8", "topology 'v5p:8x8' is no size of v5p; an example is v5p:2x2x1"),
        ("v5e:4x4x4", "no size of v5e"),
        ("2xv5e", "no size of v5e"),
        ("0xv5e:8x8", "no size of v5e"),
        ("h100:12", "no size of h100; an example is h100:64"),
        ("h100:0", "no size of h100"),
        ("2xh100:8", "no size of h100"),
        ("cpu:0", "no size of cpu; an example is cpu:64"),
        ("2xcpu:8", "no size of cpu"),
    ],
)
def test_a_name_that_says_no_hardware_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        Topology.parse(name)


def test_names():
    assert Topology.parse("v5p") == Topology("v5p")
    assert Topology.parse("v5p:4x4x8") == Topology("v5p", "4x4x8")
    assert Topology.parse("2xv5e:8x8") == Topology("v5e", "8x8", 2)
    assert Topology.parse("h100:64") == Topology("h100", "64")
    assert Topology.parse("cpu:12") == Topology("cpu", "12")


def test_the_cpu_s_devices_are_those_of_this_process():
    eight = jax.devices()  # from here on, their number stays
    assert Topology("cpu", "4").devices() == eight[:4]
    assert len(Topology("cpu").devices()) == 1
    with pytest.raises(ValueError, match="topology 'cpu:100' is more than the 8 devices that this process has"):
        Topology("cpu", "100").devices()


QUIET = """
import sys
from anchorjax import targets
targets.prepare()
import jax
found = targets.devices(sys.argv[1])
x = jax.ShapeDtypeStruct((2**20,), "int32", sharding=jax.sharding.SingleDeviceSharding(found[0]))
with jax.default_device(found[0]):
    jax.jit(jax.numpy.argsort).lower(x).compile()
print(len(found))
"""


@pytest.mark.parametrize("name", ["v5p:2x2x1", pytest.param("2xv5e:2x2", marks=pytest.mark.slow), "h100:8"])
def test_compilers_work_without_a_word(name):
    """libtpu would warn that it does not know which host this is, and XLA for GPUs that it times no sort."""
    require_compiler(Topology.parse(name).target)
    done = subprocess.run([sys.executable, "-c", QUIET, name], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and int(done.stdout) in (4, 8)
