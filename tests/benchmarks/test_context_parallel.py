"""benchmarks/compiled/context_parallel.py: what it counts in a program, and what each strategy exchanges on v5p."""

import numpy as np
import pytest

from benchmarks.compiled import context_parallel
from tests.compilers import require_compiler, run_program

HLO = """
  %a.1 = bf16[1,128,8]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, metadata={op_name="all_gather"}
  %b.2 = (bf16[16,8]{1,0}, s32[4]{0}) all-to-all(%a.1, %c), dimensions={0}
  %d.3 = f32[]{:T(128)} all-reduce(%e), to_apply=%region
  %f.4 = bf16[8]{0} reduce-scatter(%g), dimensions={0}
  %h.5 = bf16[8]{0} fusion(%a.1, %all-to-all.7), kind=kLoop
  %i.6 = f32[2]{0} reduce-precision(%j), exponent_bits=8
"""


def test_bytes_are_those_that_come_from_other_devices():
    found = context_parallel.received(HLO)
    assert found == {"all-gather": 1792, "all-to-all": 238, "all-reduce": 7, "reduce-scatter": 112}


def test_the_result_of_an_asynchronous_permutation_counts_once():
    line = "%a = (bf16[2,8]{1,0}, bf16[2,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%b)"
    done = "%c = bf16[2,8]{1,0} collective-permute-done(%a)"
    assert context_parallel.received(f"{line}\n{done}\n") == {"collective-permute": 32}


def test_a_collective_that_is_not_counted_is_named():
    with pytest.raises(ValueError, match="ragged-all-to-all in the compiled program"):
        context_parallel.received("%a = f32[4]{0} ragged-all-to-all(%b)")


def test_sends_are_none_without_documents_over_shards_and_all_of_them_for_one_document(monkeypatch):
    whole = np.ones((16, 8192), np.int32)
    whole[:, 0] = 0
    monkeypatch.setattr(context_parallel.tpu_modelled, "rows", lambda pool, length: whole)
    assert context_parallel.mean_sends(8192, "contiguous", 8) == 7 * 8
    apart = 1 + np.arange(8192, dtype=np.int32) // 1024 + 0 * whole
    monkeypatch.setattr(context_parallel.tpu_modelled, "rows", lambda pool, length: apart)
    assert context_parallel.mean_sends(8192, "contiguous", 1) == 0


PROGRAM = """
import json, sys
from anchorjax import targets
targets.prepare()
from benchmarks.compiled.context_parallel import figures
print(json.dumps(figures(sys.argv[1], 8192, {"contiguous": {1: 7.0}})[0]))
"""


# MiB of a row of 8192 tokens, of which a device has an eighth: queries and outputs 8, keys and values 2 each. The
# backward pass repeats what the forward pass sends, and sends as much again for the gradients. A ring sends an eighth
# of a device's keys and values at a time, here seven times.
EXCHANGED = {
    "all_gather": {"forward": {"all-gather": 28}, "backward": {"all-gather": 28, "all-to-all": 28}},
    "ulysses": {"forward": {"all-to-all": 17.5}, "backward": {"all-to-all": 35}},
    "ulysses:2": {"forward": {"all-to-all": 21}, "backward": {"all-to-all": 42}},
    "ring": {"forward": {"collective-permute": 3.5}, "backward": {"collective-permute": 7}},
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", EXCHANGED)
def test_what_v5p_exchanges(strategy):
    require_compiler("v5p")
    row = run_program(PROGRAM, strategy)
    for which, wanted in EXCHANGED[strategy].items():
        found = {kind: count / 2**20 for kind, count in row[which].items()}
        rest = sum(found.values()) - sum(found[kind] for kind in wanted)
        assert row["formula"][which] / 2**20 == pytest.approx(sum(wanted.values()))
        assert found == pytest.approx(found | wanted, abs=0.2) and rest < 0.2  # the mask's ids and indices
