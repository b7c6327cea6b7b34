"""Exchanges of a step: how often a program runs its collectives, and its bytes against the formula."""

import numpy as np
import pytest

from anchorjax.plan import exchanges, program
from tests.compilers import require_compiler, run_program
from tests.plan.meshes import FakeMesh

# A loop of three layers as libtpu writes it: an asynchronous all-gather in three parts, a reduce-scatter as a fusion
# without a path, and a condition with the number of iterations.
TPU = """
%fused_computation.1 (p: bf16[8]) -> bf16[64] {
  ROOT %all-gather.1 = bf16[512,1024]{1,0} all-gather(%p), MESH_GROUPS
}

%async_collective_fusion.2 (p: bf16[8]) -> bf16[64] {
  ROOT %all-gather.2 = bf16[512,1024]{1,0} all-gather(%p), MESH_GROUPS
}

%fused_computation.3 (p: bf16[8]) -> bf16[64] {
  ROOT %all-gather.3 = bf16[512,1024]{1,0} all-gather(%p), MESH_GROUPS
}

%all-reduce-scatter.4 (p: f32[1024,1024]) -> f32[256,1024] {
  %all-reduce.4 = f32[1024,1024]{1,0} all-reduce(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%body.5 (p: (s32[])) -> (s32[]) {
  %async-collective-start.1 = bf16[512,1024]{1,0} fusion(%p), calls=%fused_computation.1
  %fusion.2 = bf16[512,1024]{1,0} fusion(%p), calls=%async_collective_fusion.2, metadata={op_name="jvp()/while/body/x"}
  %async-collective-done.1 = bf16[512,1024]{1,0} fusion(%p), calls=%fused_computation.3
  %fusion.4 = f32[256,1024]{1,0} fusion(%p), calls=%all-reduce-scatter.4
}

%condition.6 (p: (s32[])) -> pred[] {
  %constant.6 = s32[]{:T(128)} constant(3)
  ROOT %lt.6 = pred[]{:T(512)} compare(%p, %constant.6), direction=LT
}

ENTRY %main.7 (p: bf16[8]) -> bf16[8] {
  %while.7 = (s32[]) while(%p), condition=%condition.6, body=%body.5
  ROOT %all-reduce.7 = f32[512,1024]{1,0} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add
}
""".replace(
    "MESH_GROUPS", "replica_groups=mesh['a'=2,'b'=4] {'b'}, metadata={op_name=\"jit(train)/jvp()/while/body/reshard\"}"
)

# The same loop as XLA for GPUs writes it: one iteration before it, and gradients that were joined have no path.
GPU = (
    """
%body.5 (p: (s32[])) -> (s32[]) {
  %all-gather-start.1 = (bf16[128,1024]{1,0}, bf16[512,1024]{1,0}) all-gather-start(%p), GROUPS
  %all-gather-done.1 = bf16[512,1024]{1,0} all-gather-done(%all-gather-start.1)
  %all-reduce-start.2 = bf16[1048576]{0} all-reduce-start(%p), replica_groups=[4,2]<=[8], to_apply=%add
  %collective-permute-start.3 = (bf16[512,1024], bf16[512,1024], u32[], u32[]) collective-permute-start(%p), PAIRS
}

ENTRY %main.7 (p: bf16[8]) -> bf16[8] {
  %all-gather-start.4 = (bf16[128,1024]{1,0}, bf16[512,1024]{1,0}) all-gather-start(%p), GROUPS
  %all-reduce-start.5 = bf16[1048576]{0} all-reduce-start(%p), replica_groups=[4,2]<=[8], to_apply=%add, JOINED
  %while.7 = (s32[]) while(%p), condition=%condition.6, body=%body.5, backend_config={"known_trip_count":{"n":"2"}}
}
""".replace("PAIRS", "source_target_pairs={{0,1},{1,0}}")
    .replace("JOINED", 'metadata={op_name="jit(train)/(psum:psum)"}')
    .replace("GROUPS", 'replica_groups=[2,4]<=[8], metadata={op_name="jit(train)/transpose(jvp())/while/body/reshard"}')
)


MESH = FakeMesh(np.zeros((1, 2, 4, 1)))


def rows(hlo: str) -> list[tuple]:
    names = "place", "kind", "axes", "dtype", "devices", "times", "received"
    return [tuple(row[name] for name in names) for row in exchanges.table(program.collectives(hlo), MESH)]


def test_parts_of_an_asynchronous_collective_count_once_and_a_loop_as_often_as_its_condition_says():
    MB = 2**20
    assert rows(TPU) == [
        ("forward layer", "reduce-scatter", "context", "f32", 4, 3, 3 * 3 * MB),
        ("forward layer", "all-gather", "context", "bf16", 4, 3, 3 * 3 / 4 * MB),
        ("once", "all-reduce", "context", "f32", 2, 1, 2 * MB),
    ]


def test_an_iteration_outside_of_its_loop_counts_once_and_in_the_loop_s_place():
    MB = 2**20
    assert rows(GPU) == [
        ("backward layer", "all-reduce", "context", "bf16", 2, 3, 3 * 2 * MB),
        ("backward layer", "all-gather", "context", "bf16", 4, 3, 3 * 3 / 4 * MB),
        ("backward layer", "collective-permute", "context", "bf16", 2, 2, 2 * MB),
    ]


def test_bytes_by_axis_are_those_of_the_table_and_computation_between_start_and_end_overlaps():
    MB = 2**20
    found = exchanges.of(TPU, MESH)
    assert exchanges.by_axis(found) == {"context": 9 * MB + 9 / 4 * MB + 2 * MB}
    assert {one.kind: one.is_overlapped for one in found} == {
        "all-gather": True,  # the fusion between its start and its end
        "reduce-scatter": False,
        "all-reduce": False,
    }
    across = TPU.replace("replica_groups=[4,2]<=[8]", "replica_groups=[4,2]<=[2,4]T(1,0)")
    assert exchanges.by_axis(exchanges.of(across, MESH))["fsdp"] == 2 * MB
    everywhere = TPU.replace("replica_groups=[4,2]<=[8]", "replica_groups=[1,8]<=[8]")
    assert exchanges.by_axis(exchanges.of(everywhere, MESH))["fsdp+context"] == 2 * 2 * 7 / 8 * MB


@pytest.mark.parametrize(
    "branches", ["branch_computations={%then.1, %else.2}", "true_computation=%then.1, false_computation=%else.2"]
)
def test_a_branch_s_collectives_count(branches):
    hlo = f"""
%then.1 (p: bf16[8]) -> bf16[8] {{
  ROOT %all-reduce.1 = bf16[8]{{0}} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add
}}

%else.2 (p: bf16[8]) -> bf16[8] {{
  ROOT %copy.2 = bf16[8]{{0}} copy(%p)
}}

ENTRY %main.3 (c: pred[], p: bf16[8]) -> bf16[8] {{
  ROOT %conditional.3 = bf16[8]{{0}} conditional(%c, %p, %p), {branches}
}}
"""
    assert [(one.kind, one.times) for one in program.collectives(hlo)] == [("all-reduce", 1)]


@pytest.mark.parametrize("dtype", ["s4", "f4e2m1fn", "c64"])
def test_a_dtype_of_unknown_size_is_refused(dtype):
    with pytest.raises(ValueError, match=f"dtype {dtype} of a collective"):
        program.collectives(TPU.replace("f32[512,1024]", f"{dtype}[512,1024]"))


def test_an_8_bit_float_is_one_byte():
    assert program.results("(f8e4m3fn[8,128]{1,0:T(8,128)}, bf16[8]{0})", "all-to-all", False) == [
        ("f8e4m3fn", 1024),
        ("bf16", 16),
    ]


def test_a_collective_of_attention_has_a_place_of_its_own():
    path = "jit(train)/transpose(jvp())/while/body/closed_call/checkpoint/shard_map/"
    assert exchanges.place_of(path + "all_to_all") == "backward attention"
    assert exchanges.place_of(path + "reduce_scatter") == "backward layer"
    assert exchanges.place_of("jit(train)/jvp()/while/body/shard_map/while/body/ppermute") == "forward attention"
    assert exchanges.place_of("jit(train)/jvp()/shard_map/while/body/closed_call/all_gather") == "loss chunk"
    assert exchanges.place_of("jit(train)/jvp()/shard_map/all_to_all") == "once"


def test_weights_gathered_for_a_chunked_feed_forward_layer_are_no_exchange_of_attention():
    """Both are in a `shard_map`; attention exchanges along context, and fsdp shares weights."""
    hlo = TPU.replace("while/body/reshard", "while/body/closed_call/shard_map/all_gather")
    place = lambda text: {place for place, kind, *_ in rows(text) if kind == "all-gather"}  # noqa: E731
    assert place(hlo) == {"forward attention"}
    assert place(hlo.replace("{'b'}", "{'a'}")) == {"forward layer"}


PROGRAM = """
import json, sys
from anchorjax import targets
targets.prepare()
from anchorjax.plan import exchanges, program, step
changes = step.changes_of(
    "model.num_layers=3 model.d_model=2048 model.d_ff=6144 model.num_heads=16 model.num_kv_heads=8 model.head_dim=128 "
    "model.vocab_size=8192 data.seq_len=8192 " + sys.argv[1]
)
config, mesh = step.prepare(step.recipe("llama3_8b_128k_anchor", changes), "h100:8")
hlo = step.compile(config, mesh).as_text()
rows, formula = exchanges.table(program.collectives(hlo), mesh), exchanges.formula(config, mesh.shape)
by_place = [[*place, received] for place, received in exchanges.sums(formula).items()]
print(json.dumps([rows, by_place, exchanges.by_axis(exchanges.of(hlo, mesh)), exchanges.by_axis(formula)]))
"""


MESHES = (
    pytest.param("mesh.fsdp=4 mesh.context=2", marks=pytest.mark.slow),
    "mesh.fsdp=2 mesh.context=2 mesh.tensor=2 mesh.context_strategy=ulysses",
)


@pytest.mark.slow
def test_h100_exchanges_what_the_formula_says_where_context_cuts_weights_too():
    """By axis, as XLA moves a weight's gather from one loop to another; token ids (0.3 MB) are not in the formula."""
    require_compiler("h100")
    cut = "mesh.fsdp=2 mesh.context=4 mesh.shard_weights_over=fsdp_context"
    _, _, by_axis, formula_by_axis = run_program(PROGRAM, cut)
    large = {axes: received for axes, received in by_axis.items() if received > 2e6}
    assert large == pytest.approx(formula_by_axis, rel=0.003, abs=0.5e6)


@pytest.mark.parametrize("mesh", MESHES)
def test_h100_exchanges_what_the_formula_says(mesh):
    require_compiler("h100")
    found, formula, by_axis, formula_by_axis = run_program(PROGRAM, mesh)
    for place, kind, wanted in formula:
        got = sum(row["received"] for row in found if (row["place"], row["kind"]) == (place, kind))
        assert got == pytest.approx(wanted, rel=0.001), (place, kind, found)
    assert {(row["place"], row["kind"]) for row in found} <= {(place, kind) for place, kind, _ in formula}
    for axes in {*by_axis, *formula_by_axis}:
        assert by_axis.get(axes, 0) == pytest.approx(formula_by_axis.get(axes, 0), rel=0.001, abs=2e6), axes
