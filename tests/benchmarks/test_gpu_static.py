"""No GPU kernel spills registers at its default blocks; benchmarks/compiled/gpu_static.py keeps its contract."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compilers import require_compiler
from tests.training.jobs import ROOT

TOOLS = Path(sys.prefix) / "compilers" / "nvidia" / "cu13" / "bin"


def measure(*arguments: str) -> list[dict]:
    require_compiler("h100")
    missing = [tool for tool in ("ptxas", "nvdisasm") if not (shutil.which(tool, path=TOOLS) or shutil.which(tool))]
    if missing:
        message = f"{', '.join(missing)} missing (requirements-compilers.txt)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    command = [sys.executable, "-m", "benchmarks.compiled.gpu_static", *arguments, "--json"]
    env = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(rows: list[dict], count: int) -> None:
    assert len(rows) == count
    for row in rows:
        assert row["spill_stores"] == row["spill_loads"] == 0, row
        # Tensor cores would round fp32 to TF32's 10 bits.
        assert (row["tensor_core"] > 0) == (row["dtype"] == "bfloat16"), row


@pytest.mark.slow  # tests/attention/test_gpu_compiles.py compiles the same kernels for each head width
@pytest.mark.parametrize("target", ["a100", "h100"])
def test_no_kernel_spills_registers(target):
    check(measure(f"--targets={target}", "--dtypes=bfloat16"), count=15)


@pytest.mark.slow
def test_no_kernel_spills_registers_in_fp32_or_on_blackwell():
    check(measure("--targets=a100,h100", "--dtypes=float32"), count=30)
    check(measure("--targets=b200"), count=30)
