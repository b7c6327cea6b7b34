"""Memory of a compiled step by kind: from a compiler's files, of programs that are refused, and in a real run."""

import dataclasses
import sys
import types

import pytest

from anchorjax.plan import buffers, memory
from tests.compilers import require_compiler, run_program

# A step of a scan forward and one backward, as compilers write it: instructions 0 to 22, the loops at 8 and 17. One
# layer of the backward pass was taken out of its loop, and runs behind it.
ASSIGNMENT = """\
BufferAssignment:
allocation 0: size 100, parameter 0, shape |f32[25]| at ShapeIndex {}, maybe-live-out:
 value: <0 param.1 @0> (size=100,offset=0): f32[25]{0}
 value: <1 new_weights @0> (size=100,offset=0): f32[25]{0}
allocation 1: size 200, parameter 1, shape |f32[50]| at ShapeIndex {}, maybe-live-out:
 value: <2 param.2 @0> (size=200,offset=0): f32[50]{0}
allocation 2: size 10, parameter 2, shape |pred[10]| at ShapeIndex {}:
 value: <3 param.3 @0> (size=10,offset=0): pred[10]{0}
allocation 3: size 4, output shape is |f32[]|, maybe-live-out:
 value: <4 loss @0> (size=4,offset=0): f32[]
allocation 4: size 4, constant:
 value: <5 constant.1 @0> (size=4,offset=0): f32[]
allocation 5: size 1000, preallocated-temp:
 value: <6 zeros.1 @0> (size=400,offset=0): bf16[2,100]{1,0}
 value: <7 carry.1{1} (phi) @0> (size=400,offset=0): bf16[2,100]{1,0}
 value: <8 keep.1 @0> (size=400,offset=0): bf16[2,100]{1,0}
 value: <9 while.1{1} (phi) @0> (size=400,offset=0): bf16[2,100]{1,0}
 value: <10 zeros.2 @0> (size=200,offset=400): f32[2,25]{1,0}
 value: <11 carry.2{1} (phi) @0> (size=200,offset=400): f32[2,25]{1,0}
 value: <12 add_layer.1 @0> (size=200,offset=400): f32[2,25]{1,0}
 value: <13 while.2{1} (phi) @0> (size=200,offset=400): f32[2,25]{1,0}
 value: <14 all-gather.1 @0> (size=100,offset=600): bf16[50]{0}
 value: <15 update.1 @0> (size=100,offset=600): f32[25]{0}
 value: <16 fusion.1 @0> (size=50,offset=700): bf16[25]{0}
 value: <17 inside.1 @0> (size=50,offset=750): bf16[25]{0}
 value: <20 zeros.3 @0> (size=50,offset=800): f32[12]{0}
 value: <21 peeled.1 @0> (size=50,offset=850): bf16[25]{0}
allocation 6: size 77, color 5, preallocated-temp:
 value: <18 kept.1 @5> (size=77,offset=0): bf16[38]{0:S(5)}
allocation 7: size 16, color 1, preallocated-temp:
 value: <19 on_chip.1 @1> (size=16,offset=0): bf16[8]{0:S(1)}

Total bytes used: 1411 (1.4KiB)
"""
LIVE = """\
HloLiveRange (max 22):
  InstructionSequence:
    0:param.1
  BufferLiveRange:
    param.1{}:0-22
    param.2{}:0-22
    param.3{}:0-22
    new_weights{}:20-22
    loss{}:8-22
    constant.1{}:0-22
    zeros.1{}:1-3
    carry.1{1}:3-5
    keep.1{}:5-8
    while.1{1}:8-17
    zeros.2{}:9-10
    carry.2{1}:10-14
    add_layer.1{}:14-17
    while.2{1}:17-20
    all-gather.1{}:12-13
    fusion.1{}:13-14
    zeros.3{}:2-22
    peeled.1{}:21-22
    update.1{}:19-20
    kept.1{}:5-12
    on_chip.1{}:6-7
  Live ranges at 13 (peak):
    zeros.1{}: 400 bytes (cumulative: 400 bytes)
"""
MADE_BY = {
    "param.1": ("parameter(0)", "state.params.blocks.q.value"),
    "param.2": ("parameter(1)", "state.opt_state[1][0].mu.blocks.q.value"),
    "param.3": ("parameter(2)", "batch.is_target_BT"),
    "zeros.1": ("broadcast(%zero)", "jit(train)/jvp()/broadcast_in_dim"),
    "carry.1": ("parameter(0)", ""),
    "keep.1": ("fusion(%carry.1)", "jit(train)/jvp()/while/body/dynamic_update_slice"),
    "while.1": ("while(%tuple.1)", "jit(train)/jvp()/while"),
    "zeros.2": ("broadcast(%zero)", "jit(train)/broadcast_in_dim"),
    "carry.2": ("parameter(0)", ""),
    "add_layer.1": ("fusion(%carry.2)", "jit(train)/transpose(jvp())/while/body/dynamic_update_slice"),
    "while.2": ("while(%tuple.2)", "jit(train)/transpose(jvp())/while"),
    "all-gather.1": (
        "all-gather(%x)",
        "jit(train)/transpose(jvp())/while/body/checkpoint/reshard",
    ),
    "peeled.1": ("fusion(%x)", "jit(train)/transpose(jvp())/while/body/mul"),
    "zeros.3": ("broadcast(%zero)", "jit(train)/transpose(jvp())/scatter-add"),
    "fusion.1": ("fusion(%x)", "jit(train)/transpose(jvp())/while/body/mul"),
    "update.1": ("fusion(%x)", "jit(train)/mul"),
}


@pytest.fixture
def program(tmp_path):
    made = [
        f' from instruction: %{name} = f32[] {op}, metadata={{op_name="{at}"}}\n' for name, (op, at) in MADE_BY.items()
    ]
    texts = {"buffer-assignment": ASSIGNMENT, "live-range": LIVE, "buffer-assignment-values": "".join(made)}
    for name, text in texts.items():
        (tmp_path / f"module_0001.jit_train.after_optimizations-{name}.txt").write_text(text)
    return types.SimpleNamespace(allocations=buffers.read(tmp_path))


def test_kinds_sum_to_what_the_compiler_allocates(program):
    found = memory.of(program)
    assert dataclasses.asdict(found) == {
        "parameters": 100,
        "moments": 200,
        "other_arguments": 10,
        "saved_activations": 400,
        "gradients": 200 + 50,
        "collectives": 100,
        "temporaries": 4 + 4 + 50 + 200,
        "host": 77,
    }
    assert found.total == sum(one.bytes for one in program.allocations if one.space == 0)
    assert memory.explained(program) == 0.8


@pytest.mark.parametrize(
    ("paths", "kind"),
    [
        (["jvp()/broadcast_in_dim", "jvp()/while/body/dynamic_update_slice"], "saved_activations"),
        # Zeros that forward and backward share: the backward pass writes a chunk after the other.
        (["jvp()/while/body/shard_map/broadcast_in_dim", "transpose(jvp())/while/body/shard_map/while"], "temporaries"),
        # XLA for GPUs computes the last chunk of the loss beside the first layer of the backward pass.
        (["jvp()/shard_map/while/body/cond/branch_0_fun/convert_element_type"], "temporaries"),
        (["jvp()/shard_map/while/body/cond/branch_0_fun/cv,cd->vd/dot_general"], "gradients"),
        (["jvp()/shard_map/convert_element_type"], "gradients"),
        (["jvp()/shard_map/all_to_all"], "collectives"),
    ],
)
def test_what_the_loss_makes_and_zeros_are_not_saved(paths, kind):
    """Live from the forward pass to the peak, which lies in the backward pass."""
    values = [buffers.Value(f"x.{n}{{}}", "bf16[8]", 16, 0, 5, 15, "fusion", path) for n, path in enumerate(paths)]
    assert memory.kind_of(buffers.Slot(tuple(values)), peak=10, begins=8, ends=20) == kind


@pytest.mark.parametrize(("opcode", "kind"), [("while", "gradients"), ("fusion", "temporaries")])
def test_a_peak_in_the_loss_has_the_sum_of_its_gradients_and_temporary_parts_of_it(opcode, kind):
    """The loss ends before the backward pass through the layers begins."""
    path = "jvp()/shard_map/while/body/cond/branch_0_fun/cv,cd->vd/dot_general"
    values = [
        buffers.Value(f"{opcode}.1{{}}", "f32[8]", 32, 0, start, start + 3, each, path)
        for start, each in ((1, "fusion"), (4, opcode))
    ]
    assert memory.kind_of(buffers.Slot(tuple(values)), peak=2, begins=8, ends=20) == kind


def test_bytes_that_one_value_after_another_takes_count_once(program):
    temporary = next(one for one in program.allocations if one.bytes == 1000)
    assert [(slot.bytes, slot.start, slot.end) for slot in temporary.slots] == [
        (400, 1, 17),
        (200, 9, 20),
        (100, 12, 13),
        (100, 19, 20),
        (50, 13, 14),
        (50, 2, 22),
        (50, 21, 22),
    ]


def test_without_a_file_of_the_compiler_nothing_is_guessed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"wrote no \*-buffer-assignment.txt"):
        buffers.read(tmp_path)


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.03G) "
            "exceeds available HBM (15.75G).",
            (round(18.03 * 2**30), round(15.75 * 2**30)),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 512.50M "
            "of 16K hbm. Exceeded hbm capacity by 3.43G.",
            (round(512.5 * 2**20), 16 * 2**10),
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17.00M of 16.00M vmem.", None),
        ("INTERNAL: Mosaic failed to compile TPU kernel", None),
    ],
)
def test_a_refusal_is_known_by_its_message(message, sizes):
    assert memory.refusal(message) == sizes


# Takes a step on two simulated devices. The operating system counts what the process holds: its resident memory before
# there is any array, and the most while the step runs. JAX counts the bytes of its arrays.
REAL_RUN = """
import ctypes, dataclasses, gc, json
from anchorjax import targets
targets.prepare()
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding
from anchorjax import sharding
from anchorjax.masks import anchors_of
from anchorjax.plan import estimate, memory, step
from anchorjax.training.optimizer import make_optimizer, make_schedule
from anchorjax.training.state import init_state
from anchorjax.training.step import Steps
from anchorjax.types import Batch

def resident(name):
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back to the system
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

keys = (
    "model.d_model=256 model.d_ff=1024 model.num_layers=4 model.num_heads=4 model.num_kv_heads=2 model.head_dim=64 "
    "model.vocab_size=2048 model.compute_dtype=float32 data.seq_len=4096 data.batch_size=2 mesh.fsdp=2"
)
config, mesh = step.prepare(step.recipe("quickstart", step.changes_of(keys)), "cpu:2")
compiled = step.compile(config, mesh)
rows, schedule = (2, 4096), make_schedule(config.optimizer, config.train.steps)
steps = Steps(config, anchors_of(config.data.mask), make_optimizer(config.optimizer, config.train.steps), schedule)
place = NamedSharding(mesh, sharding.BATCH)
zeros = lambda name: jnp.zeros(rows, bool if name.startswith("is_") else "int32", device=place)
with jax.set_mesh(mesh):
    before = resident("VmRSS")
    state = sharding.zeros(lambda: init_state(0, steps.spec, steps.optimizer))
    batch = Batch(*(zeros(field.name) for field in dataclasses.fields(Batch)))
    jax.block_until_ready((state, batch))
    held = sum(shard.data.nbytes for x in jax.live_arrays() for shard in x.addressable_shards)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM, the most so far, begins anew
    jax.block_until_ready(compiled.program(state, batch))
    most = resident("VmHWM") - before
print(json.dumps({
    "found": dataclasses.asdict(memory.of(compiled)), "total": memory.of(compiled).total,
    "held": held / 2, "most": most / 2,
    "estimated": dataclasses.asdict(estimate.memory(config, dict(mesh.shape))), "explained": memory.explained(compiled),
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the most memory that a process has held is read from /proc")
def test_a_real_run_on_cpus_holds_what_was_planned():
    run = run_program(REAL_RUN)
    found, estimated = run["found"], run["estimated"]
    arguments = ("parameters", "moments", "other_arguments")
    assert sum(found[kind] for kind in arguments) == pytest.approx(run["held"], rel=0.01)
    assert run["most"] == pytest.approx(run["total"], rel=0.1)
    assert run["explained"] > 0.95
    for kind in ("parameters", "moments"):
        assert estimated[kind] == pytest.approx(found[kind], rel=0.01)
    assert found["other_arguments"] <= estimated["other_arguments"]  # a program takes no array that it does not read
    assert estimated["saved_activations"] == pytest.approx(found["saved_activations"], rel=0.05)


# A program of a few MB for a v5e that may use 10 MiB, and one of 171 GB for an H100 of 80.
REFUSED = """
import dataclasses, json, pathlib, tempfile
from anchorjax import targets
targets.prepare()
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from anchorjax.plan import buffers, memory

def tried(target, rows, **options):
    device = targets.device(target)
    x, w = (jax.ShapeDtypeStruct((n, 4096), "bfloat16", sharding=SingleDeviceSharding(device)) for n in (rows, 4096))

    def call(x, w):
        y = jnp.tanh(x @ w)
        return (jnp.sin(y @ w) @ w).sum(dtype=jnp.float32), y

    refused = None
    with tempfile.TemporaryDirectory() as directory, jax.default_device(device):
        try:
            jax.jit(call).lower(x, w).compile(compiler_options={"xla_dump_to": directory, **options})
        except jax.errors.JaxRuntimeError as error:
            refused = memory.refusal(str(error))
        error = memory.TooLarge(*(refused or (0, 0)), buffers.read(pathlib.Path(directory)))
    return {"refused": refused, "total": memory.of(error).total}

print(json.dumps([tried("v5e", 8192, xla_tpu_max_hbm_size_mib=10), tried("h100", 5_242_880)]))
"""


def test_a_tpu_s_compiler_refuses_what_it_has_no_room_for_and_a_gpu_s_does_not():
    require_compiler("v5e")
    require_compiler("h100")
    tpu, gpu = run_program(REFUSED)
    needed, available = tpu["refused"]
    assert available == 10 * 2**20
    assert needed == pytest.approx(tpu["total"], rel=0.001)
    assert gpu["refused"] is None
    assert gpu["total"] > 170e9


TOO_LARGE = """
import dataclasses, json
from anchorjax import targets
targets.prepare()
from anchorjax.plan import estimate, memory, step
config, mesh = step.prepare(step.recipe("llama3_8b_128k_anchor"), "v5e:8x8")
try:
    step.compile(config, mesh)
except memory.TooLarge as error:
    kinds, line = memory.of(error), str(error)
    print(json.dumps({**dataclasses.asdict(kinds), "total": kinds.total, "needed": error.needed, "line": line,
        "estimated": estimate.memory(config, dict(mesh.shape)).total}))
"""


def test_a_recipe_that_a_tpu_has_no_room_for_still_says_what_takes_it():
    """Llama-3-8B on 64 v5e: inputs of 32 layers, attention's outputs and their log-sum-exp for 16,384 tokens."""
    require_compiler("v5e")
    found = run_program(TOO_LARGE)
    assert found["line"] == "the program needs 28.6 GB of a device, which has 16.9 GB"
    assert found["needed"] == pytest.approx(found["total"], rel=0.001)
    saved = 32 * 16384 * (4096 * 2 + 4096 * 2 + 32 * 4)
    assert found["saved_activations"] == pytest.approx(saved, rel=0.01)
    layers = 32 * 4 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336) / 8
    assert found["gradients"] == pytest.approx(layers + 4 * 4096 * 128256 / 8, rel=0.05)
    assert found["estimated"] == pytest.approx(found["total"], rel=0.15)
