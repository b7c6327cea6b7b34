"""Products that are fp32 by contract are fp32 on accelerators too, where the default is one pass of bf16, or TF32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax import precision, sharding
from anchorjax.attention import attention
from anchorjax.inference import cached
from anchorjax.masks import Mask
from anchorjax.training.state import init_state
from anchorjax.types import IMPLEMENTATIONS
from tests import products, tiny
from tests.compilers import require_compiler, run_program
from tests.training.making import make_batch, make_mesh, make_state, make_steps

# The training step of a recipe made small, with its own dtypes and the target's kernels: what is given to the compiler
# and, with `compile`, what it made.
PROGRAM = """
import json, sys, tempfile
from pathlib import Path
from anchorjax import targets

directory = tempfile.TemporaryDirectory()
compiling = "compile" in sys.argv
targets.prepare(dump_to=directory.name if compiling else None)
import importlib
import jax
from jax.sharding import NamedSharding
from anchorjax import sharding
from anchorjax.attention import MODULES
from anchorjax.config import resolve
from anchorjax.training.state import init_state
from anchorjax.types import Batch
from tests import products
from tests.training.making import make_steps

SMALL = dict(num_layers=1, d_model=256, d_ff=512, num_heads=2, num_kv_heads=1, head_dim=64, vocab_size=512)

def check(target, recipe, compute_dtype):
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.update(init_from="", model=SMALL | {"compute_dtype": compute_dtype or config.model.compute_dtype})
    config.rope.theta, T = 1e4, 1024
    config.update(data={"seq_len": T, "batch_size": 1, "tokenizer": "bytes"}, train={"loss_chunk": 512})
    (device,) = targets.devices(target)[:1]
    name = "pallas_tpu" if target in targets.TPUS else "pallas_gpu"
    q_tile, kv_tile = MODULES[name].default_tiles(device.device_kind, T)
    config.update(attention={"implementation": name, "q_tile": q_tile, "kv_tile": kv_tile})
    steps = make_steps(resolve(config.to_dict()).completed())
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, (1, 1, 1, 1))), [device])
    with jax.set_mesh(mesh):
        state = sharding.abstract(lambda: init_state(0, steps.spec, steps.optimizer))
        array = lambda dtype: jax.ShapeDtypeStruct((1, T), dtype, sharding=NamedSharding(mesh, sharding.BATCH))
        batch = Batch(*map(array, ("int32", "int32", "bool", "int32", "int32", "int32", "int32")))
        traced = jax.jit(steps.train, donate_argnums=0).trace(state, batch)
        lowered = traced.lower()
        found = products.given(lowered) + products.of_kernels(traced.jaxpr.jaxpr)
        dtype = steps.config.model.compute_dtype
        result = {"products": len(found), "faults": products.faults(found, dtype), "dtype": dtype}
        result |= {"parts": sorted(p.part for p in found if p.part)}
        if compiling:
            made = products.made(lowered.compile().as_text())
            rounded = [str(p) for p in made if "f32" in p.dtypes and not p.exact]
            tf32 = [f.name for f in Path(directory.name).glob("*.ptx") if "tf32" in f.read_text()]
            unknown = [str(p) for p in made if "?" in p.dtypes]
            result |= {"made": len(made), "rounded": rounded, "tf32": tf32, "unknown": unknown}
        return result

print(json.dumps([check(*case.split(",")) for case in sys.argv[1].split()]))
"""
TARGETS = ("v5e", "v6e", "h100")
RECIPES = {"quickstart": "bfloat16", "smollm2_135m_anchor": "float32", "llama3_8b_128k_anchor": "bfloat16"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_compiler_is_given_exact_products(target):
    require_compiler(target)
    results = run_program(PROGRAM, " ".join(f"{target},{recipe}," for recipe in RECIPES))
    for (recipe, dtype), result in zip(RECIPES.items(), results, strict=True):
        assert result["dtype"] == dtype
        assert result["products"] > 30, f"{recipe}: where are the step's products?"
        assert not result["faults"], "\n".join([recipe, *result["faults"]])
        # Both products of the loss's gradient, in two parts each; without any, the faults of that would not be seen.
        assert result["parts"] == (["hi", "hi", "lo", "lo"] if dtype == "bfloat16" else [])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quickstart", "smollm2_135m_anchor"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_compiler_makes_exact_products(target, recipe):
    require_compiler(target)
    (result,) = run_program(PROGRAM, f"{target},{recipe},", "compile")
    assert result["made"] > 12 and not result["unknown"]  # 18 on h100: compilers merge those that share an operand
    assert not result["faults"] + result["rounded"] + result["tf32"]


def gradient_of_logits(seed=0, C=64, V=4096):
    """p - onehot, which sums to zero over the vocabulary but for rounding to fp32."""
    rng = np.random.default_rng(seed)
    logits_CV = rng.normal(size=(C, V)) * 3
    p_CV = np.exp(logits_CV) / np.exp(logits_CV).sum(-1, keepdims=True)
    p_CV[np.arange(C), rng.integers(0, V, C)] -= 1
    return p_CV.astype(np.float32)


@pytest.mark.parametrize("turned", [False, True])
def test_two_parts_keep_what_one_rounds_off(turned):
    """What accelerators compute of an fp32 and a bf16 operand, run here: against float64."""
    dlogits_CV = gradient_of_logits()
    weight_VD = jnp.asarray(np.random.default_rng(1).normal(size=(4096, 32)) + 30.0, jnp.bfloat16)
    wanted_CD = np.float64(dlogits_CV) @ np.asarray(weight_VD, np.float64)
    arrays = (weight_VD, dlogits_CV) if turned else (dlogits_CV, weight_VD)
    subscripts = "vd,cv->cd" if turned else "cv,vd->cd"

    def error(form, *arrays):
        got_CD = jax.jit(lambda *arrays: form(subscripts, *arrays))(*map(jnp.asarray, arrays))
        assert got_CD.dtype == jnp.float32
        return np.linalg.norm(got_CD - wanted_CD) / np.linalg.norm(wanted_CD)

    rounded = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    one = error(lambda *a: jnp.einsum(*a, preferred_element_type=jnp.float32), *rounded)
    two = error(precision._in_two_parts, *arrays)
    assert two < 2e-4 < 1e-2 < one, (one, two)  # the common 30 of all weights makes both 60 times as large
    assert error(precision.einsum, *arrays) < 2e-5  # a CPU has fp32 products


def test_on_a_cpu_the_precision_changes_nothing():
    x, y = jnp.asarray(gradient_of_logits()), jnp.asarray(gradient_of_logits(1).T)
    for left, right in ((x, y), (x, y.astype(jnp.bfloat16)), (x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))):
        plain = jax.jit(lambda *a: jnp.einsum("cv,vd->cd", *a))(left, right)
        np.testing.assert_array_equal(jax.jit(lambda *a: precision.einsum("cv,vd->cd", *a))(left, right), plain)


PROGRAMS = {"training with adapters": {"lora__rank": 4, "model__num_kv_heads": 1}, "reference": {}, "xla": {}}


@pytest.mark.parametrize("name", PROGRAMS)
def test_steps_of_fp32_are_asked_for_exact_products(name):
    """A precision is part of a program, whatever it is compiled for: adapters, evaluation and the slow attention."""
    implementation = name if name in IMPLEMENTATIONS else "xla"
    steps = make_steps(tiny.config(attention__implementation=implementation, **PROGRAMS[name]))
    with jax.set_mesh(make_mesh()):
        state = sharding.abstract(lambda: init_state(0, steps.spec, steps.optimizer))
        batch = sharding.shard_batch(make_batch(2, 64), jax.sharding.get_mesh())
        for program, arguments in ((steps.train, (state, batch)), (steps.nats, (state.params, batch))):
            found = products.given(jax.jit(program).lower(*arguments))
            assert len(found) > 5 and not products.faults(found, "float32")


@pytest.mark.parametrize("columns", [1, 8], ids=["dense", "by tiles"])
def test_generation_in_fp32_is_asked_for_exact_products(columns):
    steps = make_steps(tiny.config(attention__implementation="xla", data__seq_len=64))
    with jax.set_mesh(make_mesh()):
        layers = cached.DecodeParams.of(make_state(steps).params, steps.spec)
        cache = cached.Cache.empty(jnp.zeros(2, jnp.int32), 64, steps.spec)
        tokens_BT = jax.sharding.reshard(jnp.zeros((2, columns), jnp.int32), sharding.BATCH)
        program = jax.jit(lambda *arrays: cached.advance(*arrays, steps.spec))
        found = products.given(program.lower(layers, cache, tokens_BT))
    assert len(found) > 10 and not products.faults(found, "float32")


def test_the_reference_multiplies_bfloat16_arrays_in_fp32():
    x = jnp.zeros((1, 64, 2, 16), jnp.bfloat16)
    mask = Mask.from_segments(jnp.ones((1, 64), jnp.int32), 1)
    total = lambda *qkv: jnp.sum(attention(*qkv, mask, implementation="reference").astype(jnp.float32))  # noqa: E731
    found = products.given(jax.jit(jax.grad(total, (0, 1, 2))).lower(x, x, x))
    assert len(found) == 5 and all(p.exact and p.dtypes == ("f32", "f32") for p in found)
