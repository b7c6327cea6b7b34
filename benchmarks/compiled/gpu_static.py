"""What NVIDIA's assembler says of the GPU kernels at their default blocks: registers, shared memory, spills.

    python -m benchmarks.compiled.gpu_static [--targets=a100,h100,b200] [--dtypes=...] [--widths=...] [--json]

Compiled, not measured: no GPU is needed. XLA and Triton write PTX, `ptxas` assembles it for the target, and
`nvdisasm` shows the machine code, in which tensor-core instructions and fused multiply-adds (fp32 has exact
products, which tensor cores do not) are counted as they stand in the code, not as often as they run.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from anchorjax import targets
from anchorjax.attention import attention, pallas_gpu
from anchorjax.attention.pallas_gpu import blocks
from anchorjax.attention.plan import make_plan
from anchorjax.errors import MissingCompiler
from anchorjax.masks import Mask

ASSEMBLED_FOR = {"a100": "sm_80", "h100": "sm_90a", "b200": "sm_100a"}
TABLES = {"forward": blocks.FORWARD, "dq": blocks.DQ, "dkv": blocks.DKV}
TENSOR_CORES, MULTIPLY_ADDS = r"\b(HMMA|HGMMA|UTC\w*MMA)\b", r"\bFFMA2?\b"
HEADER = "target     dtype  width   kernel   block  warps  registers  shared KB  spill B  tensor core  multiply-adds"
ROW = (
    "{target:>6}  {dtype:>8}  {width:>5}  {kernel:>7}  {block:>6}  {warps:>5}  {registers:>9}  {shared_kb:>9.0f}  "
    "{spill_stores:>3}+{spill_loads:<3}  {tensor_core:>11}  {multiply_adds:>13}"
)
TOKENS, QUERY_HEADS, KEY_HEADS = 8192, 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="a100,h100,b200")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--widths", default="64,80,96,128,256", help="of a head")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    rows = []
    print(HEADER)
    with tempfile.TemporaryDirectory() as directory:
        targets.prepare(dump_to=directory)
        for target in arguments.targets.split(","):
            for dtype in arguments.dtypes.split(","):
                for width in map(int, arguments.widths.split(",")):
                    of_kernels = figures(target, dtype, width, Path(directory))
                    print("\n".join(ROW.format(**row) for row in of_kernels), flush=True)
                    rows += of_kernels
    if arguments.json:
        print(json.dumps(rows))


def figures(target: str, dtype: str, width: int, directory: Path) -> list[dict]:
    """One dictionary for each kernel of a forward and backward pass."""
    for file in directory.iterdir():
        file.unlink()
    compile_gradients(target, dtype, width)
    shared = shared_memory(directory)
    rows = []
    for kernel, table in TABLES.items():
        name = f"anchor_attention_{kernel}"
        (ptx,) = (file for file in directory.glob("*.ptx") if f".entry {name}(" in file.read_text())
        padded = 1 << (width - 1).bit_length()
        block = blocks.fit(table, dtype, padded, *pallas_gpu.default_tiles(target, TOKENS))
        rows.append(
            {
                "target": target,
                "dtype": dtype,
                "width": width,
                "kernel": kernel,
                "block": f"{block.outer}x{block.inner}",
                "warps": block.warps,
                "shared_kb": shared[name] / 1024,
                **assemble(ptx, target),
            }
        )
    return rows


def compile_gradients(target: str, dtype: str, width: int) -> None:
    """A forward and backward pass with a given plan; what the compiler writes is in the dump directory."""
    here = SingleDeviceSharding(targets.device(target))
    mask = jax.eval_shape(lambda s: Mask.from_segments(s, 1), jax.ShapeDtypeStruct((1, TOKENS), jnp.int32))
    plan = jax.eval_shape(lambda mask: make_plan(mask, *pallas_gpu.default_tiles(target, TOKENS)), mask)

    def gradients(q, k, v, plan):
        def total(*qkv):
            return jnp.sum(attention(*qkv, plan, implementation="pallas_gpu").astype(jnp.float32))

        return jax.grad(total, (0, 1, 2))(q, k, v)

    heads = (QUERY_HEADS, KEY_HEADS, KEY_HEADS)
    arrays = (jax.ShapeDtypeStruct((1, TOKENS, count, width), dtype) for count in heads)
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), (*arrays, plan))
    with jax.default_device(targets.device(target)):
        jax.jit(gradients).lower(*inputs).compile()


def shared_memory(directory: Path) -> dict[str, int]:
    """Bytes of shared memory that each kernel is launched with."""
    (schedule,) = directory.glob("*thunk_sequence.txt")
    return {
        name: int(size)
        for name, size in re.findall(r"(anchor_attention_\w+) grid:.*shared_memory: (\d+) bytes", schedule.read_text())
    }


def assemble(ptx: Path, target: str) -> dict[str, int]:
    """What ptxas reports of a file with one kernel, and instructions in its machine code."""
    cubin = ptx.with_suffix(".cubin")
    report = run("ptxas", "-v", "--gpu-name", ASSEMBLED_FOR[target], str(ptx), "-o", str(cubin)).stderr
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report).groups()
    code = run("nvdisasm", "-c", str(cubin)).stdout
    return {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "spill_stores": int(stores),
        "spill_loads": int(loads),
        "tensor_core": len(re.findall(TENSOR_CORES, code)),
        "multiply_adds": len(re.findall(MULTIPLY_ADDS, code)),
    }


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess:
    """One of NVIDIA's tools, from the project's own compilers or else from the machine's."""
    own = Path(sys.prefix) / "compilers" / "nvidia" / "cu13" / "bin"
    program = shutil.which(tool, path=f"{own}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        raise MissingCompiler(tool)
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True)


if __name__ == "__main__":
    main()
