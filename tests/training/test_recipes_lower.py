"""Every recipe's training step is traced and lowered on an abstract mesh of the recipe's size; nothing is compiled.

The mesh is explicit, so an axis that does not divide, or an operation whose shardings do not fit, fails here: on
a laptop and within seconds, and not after an hour in the queue for 64 devices.
"""

import dataclasses
import importlib
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from anchorjax import sharding
from anchorjax.attention import MODULES
from anchorjax.config import Config, recipes, resolve
from anchorjax.errors import ConfigError
from anchorjax.models import families
from anchorjax.training import objectives
from anchorjax.training.state import init_state
from anchorjax.types import CONTEXT_STRATEGIES, Batch
from tests.training.making import make_batch, make_steps

RECIPES = sorted(recipes.shipped())
# Recipes whose step is that of smollm2_135m_anchor, with other arrays in its batches.
SAME_STEP = {"smollm2_135m_sft", "methods/pose", "methods/skipalign", "methods/window_schedule"}
TPU = "TPU v5p"


def docstring(recipe: str) -> str:
    """The docstring that tells a recipe's hardware: its own, or that of the recipe that it derives from."""
    module = importlib.import_module(f"configs.{recipe}".replace("/", "."))
    if "Hardware:" in module.__doc__:
        return module.__doc__
    return docstring(re.sub("_(full|intra_doc)$", "_anchor", recipe))


def num_devices(recipe: str) -> int:
    found = re.search(r"^(\d+) TPU v5p", docstring(recipe), re.MULTILINE)
    return int(found[1]) if found else 1  # a laptop's


def read(recipe: str, implementation: str, **model) -> Config:
    """The recipe's configuration, with a vocabulary where the tokenizer would give it."""
    config = recipes.load(recipe)
    kind = TPU if implementation == "pallas_tpu" else "cpu"
    tiles = MODULES[implementation].default_tiles(kind, config.data.seq_len)
    config.attention.update({"implementation": implementation, "q_tile": tiles[0], "kv_tile": tiles[1]})
    if config.init_from and not config.model.num_layers:  # sizes that the checkpoint gives
        published, _ = families.published("smollm2_135m")
        config.model.update(published)
    config = resolve(config.to_dict()).completed()
    model = {"vocab_size": config.model.vocab_size or 320} | model
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


def lower(config: Config, shape: dict[str, int], platform: str) -> str:
    """StableHLO of loss, gradient and update on a mesh of that shape, of devices that are not here."""
    axis_types = (AxisType.Explicit,) * len(sharding.AXES)
    mesh = AbstractMesh(tuple(shape[axis] for axis in sharding.AXES), sharding.AXES, axis_types=axis_types)
    objective = objectives.make(config, np.ones(32, int))  # a target of each context
    steps = dataclasses.replace(make_steps(config), objective=objective)
    with jax.sharding.use_abstract_mesh(mesh):
        state = jax.eval_shape(lambda: init_state(config.seed, steps.spec, steps.optimizer))
        step = jax.jit(steps.train, donate_argnums=0).trace(state, abstract_batch(config, mesh))
        return step.lower(lowering_platforms=(platform,)).as_text()


def abstract_batch(config: Config, mesh: AbstractMesh) -> Batch:
    rows = config.data.batch_size, config.data.seq_len
    placed = NamedSharding(mesh, sharding.BATCH)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(rows, x.dtype, sharding=placed), make_batch(1, 16))


@pytest.mark.parametrize(("implementation", "platform"), [("xla", "cpu"), ("pallas_tpu", "tpu")])
@pytest.mark.parametrize("recipe", sorted({*RECIPES} - SAME_STEP))
def test_the_step_lowers_on_a_mesh_of_the_recipe_s_size(recipe, implementation, platform):
    config, devices = read(recipe, implementation), num_devices(recipe)
    text = lower(config, config.check_devices(devices), platform)
    assert f"mhlo.num_partitions = {devices} " in text
    assert ("tpu_custom_call" in text) == (implementation == "pallas_tpu")


ANCHOR = [recipe for recipe in RECIPES if recipe.endswith("k_anchor")]
MORE = [(recipe, devices) for recipe in ANCHOR for devices in (128, 256, 512)]


@pytest.mark.parametrize(("recipe", "devices"), MORE)
def test_the_step_lowers_on_more_devices(recipe, devices):
    config = read(recipe, "pallas_tpu")
    shape = config.check_devices(devices)
    assert shape == {"data": 1, "fsdp": 8, "context": devices // 8, "tensor": 1}
    assert f"mhlo.num_partitions = {devices} " in lower(config, shape, "tpu")


@pytest.mark.parametrize(
    "sizes", [{"context": 64}, {"context": 8, "tensor": 8}, {"context": 64, "tensor": 4}, {"context": 64, "tensor": 8}]
)
def test_one_row_of_a_million_tokens_lowers(sizes):
    config = read("llama3_8b_128k_anchor", "pallas_tpu")
    mesh = dataclasses.replace(config.mesh, fsdp=1, **sizes)
    data = dataclasses.replace(config.data, seq_len=2**20, batch_size=1)
    config, devices = dataclasses.replace(config, mesh=mesh, data=data), math.prod(sizes.values())
    assert f"mhlo.num_partitions = {devices} " in lower(config, config.check_devices(devices), "tpu")


@pytest.mark.parametrize("strategy", CONTEXT_STRATEGIES)
def test_every_context_strategy_lowers(strategy):
    config = read("llama3_8b_128k_anchor", "pallas_tpu")
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, context_strategy=strategy))
    assert "mhlo.num_partitions = 64 " in lower(config, config.check_devices(64), "tpu")


def test_sizes_are_those_of_the_docstrings():
    found = {recipe: num_devices(recipe) for recipe in RECIPES}
    sizes = {"llama2_7b_64k": 32, "llama3_8b_128k": 64, "mistral_7b_128k": 64, "qwen15_18b_128k": 64}
    assert {name: found[name] for recipe in sizes for name in found if name.startswith(recipe)} == {
        f"{recipe}_{mask}": size for recipe, size in sizes.items() for mask in ("anchor", "full", "intra_doc")
    }
    others = {name for name, size in found.items() if size == 1 and not name.startswith("methods/")}
    assert others == {"quickstart", "smollm2_135m_anchor", "smollm2_135m_sft"}


@pytest.mark.parametrize(
    ("sizes", "model", "key"),
    [
        ({"fsdp": 3, "context": 8}, {}, "data.batch_size"),
        ({"fsdp": 8, "context": 3}, {}, "data.seq_len"),
        ({"tensor": 3}, {}, "model.num_heads"),
        ({"fsdp": 8, "context": 8}, {"d_model": 4100}, "model.d_model"),
    ],
)
def test_an_axis_that_does_not_divide_fails(sizes, model, key):
    """The configuration refuses it in one line; without that check, the trace itself fails."""
    config = read("llama3_8b_128k_anchor", "xla", **model)
    shape = dict.fromkeys(sharding.AXES, 1) | sizes
    devices = math.prod(shape.values())
    mesh = dataclasses.replace(config.mesh, **shape)
    with pytest.raises(ConfigError, match=key):
        dataclasses.replace(config, mesh=mesh).check_devices(devices)
    with pytest.raises(Exception, match=r"divi|shard"):
        lower(config, shape, "cpu")
