"""benchmarks/training/step_profile.py: products are counted as the model has them, on both sides, and times add up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from anchorjax.models import families
from benchmarks.training import step_trace
from tests.training.jobs import ROOT

THIS_FILE = Path(__file__).name


def test_counts_the_products_of_a_compiled_function_by_file():
    def twice(x, y):
        return jax.lax.fori_loop(0, 3, lambda _, z: jnp.tanh(z @ y), x) @ y

    compiled = jax.jit(twice).lower(jnp.ones((8, 16)), jnp.ones((16, 16))).compile()
    found = step_trace.instructions(compiled.as_text(), (THIS_FILE,))
    products = [x for x in found.values() if x.flops]
    assert {x.flops for x in products} == {2 * 8 * 16 * 16}
    assert {x.file for x in products} == {THIS_FILE}
    assert all(not x.file for x in step_trace.instructions(compiled.as_text(), ("another.py",)).values())


def test_time_of_an_event_is_without_those_within_it():
    events = [
        (0, 0, 100, "loop"),
        (0, 10, 40, "product"),
        (0, 15, 20, "copy"),
        (0, 50, 60, "product"),
        (1, 0, 7, "sum"),
    ]
    seconds = {}
    for name, own in step_trace.own_times(events):
        seconds[name] = seconds.get(name, 0) + round(own * 1e9)
    assert seconds == {"loop": 60, "product": 35, "copy": 5, "sum": 7}


@pytest.mark.slow
def test_both_sides_do_the_products_of_the_model():
    pytest.importorskip("transformers")
    T, layers = 256, 2
    command = [
        sys.executable,
        "-m",
        "benchmarks.training.step_profile",
        f"--length={T}",
        f"--layers={layers}",
        "--json",
    ]
    env = os.environ | {"XLA_FLAGS": ""}  # one device: the batch is one row
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    model, _ = families.published("smollm2_135m")
    D, F, V = model["d_model"], model["d_ff"], model["vocab_size"]
    heads = 2 * model["num_heads"] + 2 * model["num_kv_heads"]
    matrices = D * heads * model["head_dim"] + 3 * D * F
    for side in ("full", "anchor", "transformers"):
        lines = result[side]
        assert lines["layer products"]["gflop"] == pytest.approx(6e-9 * T * layers * matrices)
        assert lines["output products"]["gflop"] == pytest.approx(6e-9 * T * D * V)
        assert lines["attention products"]["gflop"] > 0
        assert all(line["s"] >= 0 for line in lines.values())
    assert result["anchor"]["attention products"]["gflop"] <= result["full"]["attention products"]["gflop"]
