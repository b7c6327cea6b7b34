"""benchmarks/gpu.py on a machine without a GPU: it says so, dry-runs without the libraries that a bare machine lacks,
keeps what was measured when a part ends early, and its contract part notices wrong numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.config import resolve
from anchorjax.masks import Mask, count_live_pairs
from benchmarks.gpu_parts import attention, contract_cases, part, rows, tables, training_step
from benchmarks.gpu_parts.workers import Failed, Worker
from configs import quickstart
from tests import xla
from tests.compilers import require_compiler, run_program
from tests.training.jobs import ROOT

# What a machine with JAX, flax, optax and orbax may lack: no process of the dry run can import it. PyTorch needs tqdm.
LACKING = (
    *("grain", "ml_collections", "tensorflow_datasets", "array_record", "tokenizers", "safetensors", "pyarrow"),
    *("tensorboardX", "matplotlib", "jinja2", "wonderwords", "transformers", "tokamax"),
)
SITE = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {LACKING!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Refuse())
"""
HANGS = """
import sys, time
if any("contract_worker" in argument for argument in sys.orig_argv):
    time.sleep(600)
"""


def gpu(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags()} | env
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)


@pytest.mark.slow
def test_dry_run_measures_every_part_on_a_bare_machine(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    done = gpu("--dry-run", f"--out={tmp_path / 'out'}", "--limit=7200", PYTHONPATH=str(tmp_path))
    records = part.read(tmp_path / "out" / "results.jsonl")
    faults = [one for name in records for one in records[name] if "failed" in one or one.get("passed") is False]
    assert not faults and done.returncode == 0, (faults, done.stderr[-2000:])
    assert tuple(records) == part.NAMES
    assert all(records[name][-1]["outcome"] == "done" for name in records)
    kinds = [one["kind"] for one in records["contract"] if one["what"] == "case"]
    assert set(kinds) == {"numbers", "leakage", "long", "far"}
    calls = [one for one in records["attention"] if one["what"] == "call"]
    names = {name for side in attention.CALLS.values() for name in side}
    assert {one["name"] for one in calls} == names
    skipped = {(one["name"], one["skipped"]) for one in calls if "skipped" in one}
    assert ("cudnn_full", "cuDNN needs a GPU") in skipped
    measured = {one["name"]: one for one in calls if "ms" in one}
    assert {"kernels", "plan_and_kernels", "plan", "full", "flex", "sdpa_copied"} <= set(measured)
    # PyTorch, on other arrays of the same numbers, gives the same answer.
    differences = [one["difference"] for one in calls if one.get("difference") is not None]
    assert len(differences) > 6 and max(differences) < 2e-2
    assert {one["mask"] for one in records["training"] if "step_s" in one} == {"anchor", "full"}
    assert {"deviation", "prefill", "decode"} <= {one["what"] for one in records["evaluation"]}
    told = gpu(f"--markdown={tmp_path / 'out' / 'results.jsonl'}")
    assert told.stdout == (tmp_path / "out" / "tables.md").read_text()
    assert told.stdout.count("\n## ") + 1 == len(part.NAMES)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    done = gpu(f"--out={tmp_path / 'out'}")
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "out").exists()
    assert done.stderr == "gpu.py: no GPU: JAX finds cpu; --dry-run runs tiny sizes on a CPU\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts=ceilings,speed", "--dry-run"], "--parts=speed is unknown; there are ceilings, contract"),
        (["--limit=0", "--dry-run"], "--limit=0 is not allowed"),
        (["--markdown=nowhere.jsonl"], "--markdown=nowhere.jsonl cannot be read: No such file"),
    ],
)
def test_bad_input_is_named(arguments, words):
    done = gpu(*arguments)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_a_part_that_is_cut_takes_neither_records_nor_parts_with_it(tmp_path):
    assert gpu("--dry-run", "--parts=ceilings", f"--out={tmp_path}").returncode == 0
    mark = f"TEST_OF={tmp_path}"
    # A worker that hangs, so that the part is cut however fast the machine is.
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    given = {"TEST_OF": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    done = gpu("--dry-run", "--parts=contract", "--limit=6", f"--out={tmp_path}", **given)
    assert done.returncode == 1 and "contract: cut at its limit" in done.stdout
    records = part.read(tmp_path / "results.jsonl")
    assert records["contract"][-1]["outcome"] == "cut at its limit"
    assert [one["what"] for one in records["ceilings"]] == ["began", "machine", "matmul", "copy", "ended"]
    assert "cut at its limit" in (tmp_path / "tables.md").read_text() and "TFLOP/s" in done.stdout
    left = [one for one in Path("/proc").glob("[0-9]*/environ") if mark.encode() in readable(one)]
    assert not left  # its worker, neither


def readable(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # another's, or ended meanwhile
        return b""


def test_records_are_of_the_last_run_and_whole(tmp_path):
    file = tmp_path / "results.jsonl"
    for tflops in (1.0, 2.0):
        part.write(file, {"part": "ceilings", "what": "began"})
        part.write(file, {"part": "ceilings", "what": "matmul", "tflops": tflops})
    with file.open("a") as lines:
        lines.write('{"part": "ceilings", "what": "co')
    assert [one.get("tflops") for one in part.read(file)["ceilings"]] == [None, 2.0]


def test_workers_survive_faults_and_tell_of_their_death():
    worker = Worker("tests.benchmarks.bad_worker")
    pid = worker.ask(do="work")
    with pytest.raises(Failed, match=r"^ValueError: a fault of two lines$"):
        worker.ask(do="raise")
    with pytest.raises(part.Unavailable, match="no such library"):
        worker.ask(do="miss")
    assert worker.ask(do="work") == pid
    with pytest.raises(Failed, match=r"the process died \(exit code 3\)"):
        worker.ask(do="die")
    with pytest.raises(Failed, match="the process died"):
        worker.ask(do="work")
    slow = Worker("tests.benchmarks.bad_worker")
    with pytest.raises(Failed, match="no answer within 1 s"):
        slow.ask(1.0, do="hang")
    assert slow._process.returncode == -9


@settings(max_examples=12, deadline=None)  # most compile anew
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_pairs_are_those_of_the_masks(lengths):
    lengths = np.array(lengths)
    segments = jnp.asarray(rows.segment_ids(lengths))
    assert rows.live_pairs(lengths) == int(count_live_pairs(segments[0], 1))
    index = rows.copied_index(lengths)
    copied = np.repeat(np.arange(len(lengths)), 1 + lengths)
    assert rows.copied_pairs(lengths) == int(Mask.from_segments(jnp.asarray(copied)[None], 0).materialize().sum())
    # Each copy's document is the shared row's, behind token 0.
    np.testing.assert_array_equal(np.asarray(segments)[0, index[index > 0]], copied[index > 0] + 1)
    assert (index == 0).sum() == len(lengths)


@pytest.mark.parametrize("layout", rows.LAYOUTS)
@pytest.mark.parametrize("length", [256, 8192, 131072])
def test_rows_are_full(layout, length):
    lengths = rows.document_lengths(layout, length)
    assert lengths.sum() == length - 1 and lengths.min() > 0
    assert len(lengths) > 2


FAULTS = {
    "nothing": lambda out, lse, *gradients: (out, lse, *gradients),
    "an output": lambda out, lse, *gradients: (out.at[0, 3, 0, 0].add(1e-3), lse, *gradients),
    "a gradient": lambda out, lse, dq, dk, dv: (out, lse, dq, dk * 1.0001, dv),
    "not-a-number": lambda out, lse, dq, dk, dv: (out, lse, dq, dk, dv.at[0, 0, 0, 0].set(jnp.nan)),
    "log-sum-exp": lambda out, lse, *gradients: (out, lse.at[0, 3, 0].add(1e-2), *gradients),
    "a log-sum-exp of not-a-number": lambda out, lse, *gradients: (out, lse.at[0, 3, 0].set(jnp.nan), *gradients),
    "a pad": lambda out, lse, dq, dk, dv: (out, lse, dq, dk.at[1, -1, 0, 0].set(1e-6), dv),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contract_part_notices(fault):
    case = contract_cases.Numbers("float32", (2, 1, 16), T=40)
    reference = contract_cases.oracle.forward_and_vjp

    def run(*arguments):
        return reference(*arguments, "reference", (128, 128))

    broken = jax.jit(lambda *arguments: FAULTS[fault](*run(*arguments)))
    found = case.check((broken, run, None))
    assert found["passed"] is (fault == "nothing")
    assert (found["lse_error"] > contract_cases.FP32_TOLERANCE) is ("log-sum-exp" in fault)


def test_the_contract_part_notices_numbers_that_change():
    case = contract_cases.Numbers("float32", (2, 1, 16), T=40)
    reference, times = contract_cases.oracle.forward_and_vjp, iter(range(100))

    def run(*arguments):
        out, *rest = reference(*arguments, "reference", (128, 128))
        return out * (1 + 1e-7 * next(times)), *rest

    found = case.check((run, lambda *arguments: reference(*arguments, "reference", (128, 128)), None))
    assert found["passed"] is found["same_twice"] is False and found["error"] < found["tolerance"]


def test_every_layout_is_drawn():
    for kind in ("contiguous", "interleaved", "one", "dead"):
        segments = contract_cases.segments_of(kind, np.random.default_rng(0), 331, 2)
        assert segments.shape == (331,) and segments.min() >= -1
    assert {kind for draw in contract_cases.DRAWS for kind in draw} == {"contiguous", "interleaved", "one", "dead"}


def test_rates_count_live_pairs():
    pairs = {"live": 100, "causal": 500, "copied": 110}
    forward = attention.rates("varlen_copied", "forward", pairs, (32, 8, 128), 1e-3)
    assert forward["tflops"] == pytest.approx(4 * 32 * 128 * 100 / 1e-3 / 1e12)
    assert forward["own_tflops"] == pytest.approx(1.1 * forward["tflops"])
    both = attention.rates("full", "forward_backward", pairs, (32, 8, 128), 1e-3)
    assert both["tflops"] == both["own_tflops"] == pytest.approx(14 * 32 * 128 * 500 / 1e-3 / 1e12)
    assert attention.rates("plan", "plan", pairs, (32, 8, 128), 1e-3) == {"ms": 1.0}


def test_the_quickstart_is_the_recipe_s():
    recipe = resolve(quickstart.get_config().to_dict())
    ours = training_step.config_of("quickstart", recipe.data.seq_len, "anchor")
    recipe = recipe.completed({"vocab_size": 320}).model  # bytes, rounded up
    assert ours.model == recipe


def test_a_table_has_a_row_for_each_record():
    records = [{"what": "ratio", "model": "tiny", "length": 4096, "full_over_anchor": 2.0}]
    assert tables.markdown({"training": records}).splitlines()[-1] == "| tiny | 4,096 | 2.00 |"


# Compiled for an H100, not run: faults of lowering show before a GPU is at hand.
COMPILED = """
import dataclasses, json, sys
from anchorjax import targets
targets.prepare()
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, SingleDeviceSharding
from anchorjax import sharding
from anchorjax.masks import Mask
from anchorjax.training.state import init_state
from anchorjax.types import Batch
from benchmarks.gpu_parts import attention, contract_cases, jax_calls, training_step
from tests.attention import contract as oracle

here = SingleDeviceSharding(targets.device("h100"))
put = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)

def mask_of(rows, T, *rest):
    make = lambda segments: Mask.from_segments(segments, *rest)
    return jax.eval_shape(make, jax.ShapeDtypeStruct((rows, T), jnp.int32))

def heads(rows, T, N, K, H, dtype):
    return [jax.ShapeDtypeStruct((rows, T, count, H), dtype) for count in (N, K, K, N)]

def of_contract():
    for case in contract_cases.cases(dry_run=False):
        if isinstance(case, contract_cases.Numbers):
            arrays = heads(2, case.T, *case.heads, case.dtype)
            mask = mask_of(2, case.T, case.anchors, case.window, case.soft_cap)
            yield oracle.forward_and_vjp, (*arrays, mask), ("pallas_gpu", case.tiles or (128, 128))
        elif not isinstance(case, contract_cases.Leakage):
            arrays, tile = heads(1, case.T, *case.heads, case.dtype), 128 if case.T < 2**18 else 512
            yield oracle.forward_and_vjp, (*arrays, mask_of(1, case.T, 1)), ("pallas_gpu", (tile, tile))

def of_attention():
    for length in attention.LENGTHS:
        for name, anchors in (("plan_and_kernels", 1), ("full", 0)):
            mask = mask_of(1, length, anchors)
            arrays = heads(1, length, attention.N, attention.K, attention.H, "bfloat16")
            both = jax.jit(jax_calls.forward_backward(jax_calls.ATTENTIONS[name]))
            yield both, (*arrays, jax.eval_shape(jax_calls.planned, mask)), ()

def compile_training(model, length, mask):
    config = training_step.config_of(model, length, mask)
    kernels = dataclasses.replace(config.attention, implementation="pallas_gpu")
    steps = training_step.make_steps(dataclasses.replace(config, attention=kernels))
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), [targets.device("h100")])
    with jax.set_mesh(mesh):
        state = sharding.abstract(lambda: init_state(0, steps.spec, steps.optimizer))
        array = lambda dtype: jax.ShapeDtypeStruct((1, length), dtype, sharding=NamedSharding(mesh, sharding.BATCH))
        batch = Batch(*map(array, ("int32", "int32", "bool", "int32", "int32", "int32", "int32")))
        return jax.jit(steps.train, donate_argnums=0).lower(state, batch).compile()

compiled = []
if sys.argv[1] == "training":
    compiled += [compile_training(*model, "anchor") for model in training_step.MODELS]
else:
    for function, arrays, static in {"contract": of_contract, "attention": of_attention}[sys.argv[1]]():
        compiled.append(function.lower(*put(arrays), *static).compile())
memory = [one.memory_analysis() for one in compiled]
assert all("anchor_attention_dkv" in one.as_text() for one in compiled)
print(json.dumps([one.argument_size_in_bytes + one.temp_size_in_bytes + one.output_size_in_bytes for one in memory]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contract", "attention", "training"])
def test_what_it_runs_compiles_for_an_h100_and_fits(name):
    require_compiler("h100")
    found = run_program(COMPILED, name)
    counts = {"contract": 19, "attention": 8, "training": 4}
    assert len(found) == counts[name]
    assert max(found) < 75e9, json.dumps(found)
