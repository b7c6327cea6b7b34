"""benchmarks/compiled/async_collectives.py: what it counts in a scheduled program, and what the flags give."""

import pytest

from benchmarks.compiled.async_collectives import counts
from tests.compilers import require_compiler, run_program

HLO = """
%fused_computation.1 (p: bf16[8]) -> bf16[8] {
  %all-gather.7 = bf16[64]{0} all-gather(%p), dimensions={0}
}

%called_computation.2 (p: bf16[8]) -> bf16[64] {
  ROOT %all-gather.9 = bf16[64]{0} all-gather(%p), dimensions={0}
}

ENTRY %main.1 (p: bf16[8]) -> bf16[8] {
  %async-collective-start.1 = (bf16[8]{0}, bf16[64]{0}) fusion(%p), kind=kCustom, calls=%fused_computation.1
  %fusion.1 = bf16[8]{0} fusion(%p), kind=kLoop, calls=%fused_computation.2
  %async-collective-done.1 = bf16[64]{0} fusion(%async-collective-start.1), calls=%fused_computation.3
  %all-gather-start.2 = (bf16[8]{0}, bf16[64]{0}) all-gather-start(%p), dimensions={0}
  %bitcast.3 = bf16[8]{0} bitcast(%p)
  %all-gather-done.2 = bf16[64]{0} all-gather-done(%all-gather-start.2)
  %slice-start.1 = ((bf16[8]{0}), bf16[4]{0}, u32[]) slice-start(%p), slice={[0:4]}
  %slice-done.1 = bf16[4]{0} slice-done(%slice-start.1)
  %all-gather.9.call-start = ((bf16[8]{0}), bf16[64]{0}) call-start(%p), to_apply=%called_computation.2
  %custom.1 = bf16[8]{0} custom-call(%p), custom_call_target="kernel"
  %all-gather.9.call-done = bf16[64]{0} call-done(%all-gather.9.call-start)
  %reduce-scatter.4 = bf16[1]{0} reduce-scatter(%p), dimensions={0}
  ROOT %all-reduce.5 = bf16[8]{0:T(128)} all-reduce(%p), to_apply=%add
}
"""


def test_pairs_are_counted_once_and_overlap_needs_work_between():
    assert counts(HLO) == {"synchronous": 2, "pairs": 3, "overlapped": 2}


PROGRAM = """
import json, sys
from anchorjax import targets
targets.prepare()
from benchmarks.compiled.async_collectives import figures
print(json.dumps(figures(sys.argv[1])))
"""


# XLA for GPUs takes an iteration out of each loop of two layers with or without flags, so few pairs are left to gain.
@pytest.mark.slow
@pytest.mark.parametrize(("hardware", "gained"), [("v5p:2x2x2", 5), ("h100:8", 1)])
def test_the_flags_give_more_overlapped_pairs(hardware, gained):
    require_compiler(hardware.partition(":")[0])
    default, auto = run_program(PROGRAM, hardware)
    assert auto["overlapped"] >= default["overlapped"] + gained, (default, auto)
