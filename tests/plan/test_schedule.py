"""XLA's own estimates of a TPU program, summed as often as each instruction runs."""

import pytest

from anchorjax.plan import schedule


def estimated(cycles: int, path: str) -> str:
    return f'metadata={{op_name="{path}"}}, backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'


HLO = f"""
%fused_computation.1 (p: bf16[8]) -> bf16[8] {{
  ROOT %copy.1 = bf16[8]{{0}} copy(%p), {estimated(1000, "jit(train)/jvp()/while/body/copy")}
}}

%body.5 (p: (s32[])) -> (s32[]) {{
  %fusion.1 = bf16[8]{{0}} fusion(%p), calls=%fused_computation.1, {estimated(70, "jit(train)/jvp()/while/body/dot")}
  %fusion.2 = bf16[8]{{0}} fusion(%p), calls=%fused_computation.1, {estimated(7, "jvp()/shard_map/while/body")}
}}

%condition.6 (p: (s32[])) -> pred[] {{
  ROOT %lt.6 = pred[] compare(%p, %p), direction=LT
}}

ENTRY %main.7 (p: bf16[8]) -> bf16[8] {{
  %while.7 = (s32[]) while(%p), condition=%condition.6, body=%body.5, backend_config={{"known_trip_count":{{"n":"3"}}}}
  %add.1 = bf16[8]{{0}} add(%p, %p), {estimated(5, "jit(train)/add")}
  %iota.1 = s32[8]{{0}} iota(), {estimated(9223372036854775807, "jit(train)/iota")}
}}
"""


def test_loops_multiply_fusions_count_once_and_what_is_no_estimate_is_left_out():
    found = schedule.cycles(HLO)
    assert (found.layers, found.rest) == (3 * 70, 3 * 7 + 5)
    assert found.total == 236


def test_a_program_without_estimates_has_none():
    assert schedule.cycles("ENTRY %main (p: f32[8]) -> f32[8] {\n  ROOT %add.1 = f32[8]{0} add(%p, %p)\n}\n") is None


@pytest.mark.parametrize("backward", ["jit(train)/transpose(jvp())/while/body/closed_call/dot"])
def test_the_backward_pass_is_of_the_layers(backward):
    assert schedule.cycles(HLO.replace("jit(train)/add", backward)).layers == 3 * 70 + 5
