"""Memory of a recipe's compiled step: what is said to lie on the host is what the step keeps."""

import pytest

from tests.compilers import require_compiler, run_program

PROGRAM = """
import json, sys
from anchorjax import targets

targets.prepare()
from anchorjax.plan import step
from benchmarks.compiled import memory

keys = "data.seq_len=8192 model.d_ff=1024 model.vocab_size=1024 model.remat=offload model.ffn_chunk=1024"
print(json.dumps(memory.figures("llama3_8b_128k_anchor", "h100:8", step.changes_of(keys), "1,2")))
"""


@pytest.mark.slow  # half a minute
def test_what_the_step_keeps_lies_on_the_host():
    """Inputs and attention's outputs in bf16, log-sum-exp in fp32, of one row of 32 layers."""
    require_compiler("h100")
    found = run_program(PROGRAM)
    saved = 32 * 8192 * (4096 * 2 + 32 * 128 * 2 + 32 * 4) / 1e9
    assert found["host"] == pytest.approx(saved, rel=0.02)
    assert found["device"] == pytest.approx(found["arguments"] + found["temporaries"])
    assert found["transfers"] >= 6
    assert found["extrapolated"] == "from 1 and 2 layers to 32"
