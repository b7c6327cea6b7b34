"""What each way to compute a product of fp32 costs and how far it is off: the choices of anchorjax/precision.py.

    python -m benchmarks.attention.precision [--targets=v5e,v6e,h100] [--json]

Errors are *emulated* on the CPU: operands are cut into parts as the hardware does (rounded to nearest), and the parts'
products, exact in fp32, added up in fp32 as a CPU adds. The array is the loss's: the gradient of 512 tokens' logits
over 8192 words, fp32, times a matrix of width 256 in bf16 (as with compute_dtype=bfloat16) or fp32. Given are the
distance from float64 by the norm, and the sum over the vocabulary by that of absolutes: exactly it is zero.

Costs are *compiled*, never run: one product of 1024 tokens, 8192 words and width 1024. On TPUs matrix instructions in
the final schedules and the cycles that XLA estimates; on GPUs instructions of the PTX, as they stand there, by kind.
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import DotAlgorithmPreset, Precision
from jax.sharding import SingleDeviceSharding

from anchorjax import precision, targets

TOKENS, WORDS, WIDTH = 512, 8192, 256
COMPILED_TOKENS, COMPILED_WIDTH = 1024, 1024
BF16, TF32 = 7, 10  # bits of mantissa
# By name: bits of a part, and how many parts of each operand count; a product of parts i and j counts if i + j < parts.
EMULATED = {
    "bf16": (BF16, 1),
    "TF32": (TF32, 1),
    "hi + lo, bf16x3": (BF16, 2),
    "TF32x3": (TF32, 2),
    "bf16x6": (BF16, 3),
    "fp32": (23, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="v5e,v6e,h100", help="to compile for, comma separated")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        targets.prepare(dump_to=directory)
        results = {"errors": errors()}
        for target in filter(None, arguments.targets.split(",")):
            results[target] = costs(target, Path(directory))
    if arguments.json:
        print(json.dumps(results))


def errors() -> dict[str, dict[str, float]]:
    """By way: relative errors of both products of the loss for matrices of both dtypes, and the vocabulary's sum."""
    rng = np.random.default_rng(0)
    logits_CV = rng.normal(size=(TOKENS, WORDS)) * 3
    p_CV = np.exp(logits_CV) / np.exp(logits_CV).sum(-1, keepdims=True)
    p_CV[np.arange(TOKENS), rng.integers(0, WORDS, TOKENS)] -= 1
    x_CV = jnp.asarray(p_CV / 3001, jnp.float32)  # a mean over targets, whose number is seldom a power of two
    found = {}
    for name, (bits, count) in EMULATED.items():
        row = {}
        for dtype in ("bfloat16", "float32"):
            for product, subscripts, shape in (("dhidden", "cv,vd->cd", WORDS), ("dW", "cv,cd->vd", TOKENS)):
                y = jnp.asarray(rng.normal(size=(shape, WIDTH)), dtype).astype(jnp.float32)
                wanted = np.einsum(subscripts, np.float64(x_CV), np.float64(y), optimize=True)
                got = np.float64(by_parts(subscripts, x_CV, y, bits, count))
                row[f"{product}_{dtype}"] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
        kept_CV = np.float64(sum(parts(x_CV, bits, count)))
        row["sum"] = float(np.abs(kept_CV.sum(-1)).mean() / np.abs(kept_CV).sum(-1).mean())
        found[name] = row
        print(f"{name:16}  " + "  ".join(f"{key} {value:.1e}" for key, value in row.items()), flush=True)
    return found


def parts(x: jax.Array, bits: int, count: int) -> list[jax.Array]:
    """fp32 arrays of `bits` bits of mantissa, whose sum is x up to what no part holds."""
    found = []
    for _ in range(count):
        found.append(jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits))
        x -= found[-1]
    return found


def by_parts(subscripts: str, x: jax.Array, y: jax.Array, bits: int, count: int) -> jax.Array:
    left, right = parts(x, bits, count), parts(y, bits, count)
    pairs = [(i, j) for i in range(count) for j in range(count) if i + j < count]
    smallest_first = sorted(pairs, key=sum, reverse=True)
    return sum(jnp.einsum(subscripts, left[i], right[j]) for i, j in smallest_first)


def _plain(how, dtype=None):
    def product(x, y):
        x, y = (x.astype(dtype), y.astype(dtype)) if dtype else (x, y.astype(jnp.float32))
        return jnp.einsum("cv,vd->cd", x, y, precision=how, preferred_element_type=jnp.float32)

    return product


WAYS = {
    "cast to bf16": _plain(None, jnp.bfloat16),
    "default": _plain(None),
    "precision.einsum": lambda x, y: precision.einsum("cv,vd->cd", x, y),  # hi + lo, or HIGHEST for two of fp32
    "HIGH": _plain(Precision.HIGH),
    "HIGHEST": _plain(Precision.HIGHEST),
}
GPU_WAYS = {
    "TF32_TF32_F32_X3": _plain(DotAlgorithmPreset.TF32_TF32_F32_X3),
    "BF16_BF16_F32_X6": _plain(DotAlgorithmPreset.BF16_BF16_F32_X6),
}


def costs(target: str, directory: Path) -> dict[str, dict]:
    """By way and the matrix's dtype, what the target's compiler made."""
    found, on_tpu = {}, target in targets.TPUS
    for dtype in ("bfloat16", "float32"):
        for name, product in (WAYS if on_tpu else WAYS | GPU_WAYS).items():
            before = set(directory.iterdir())
            text = compile_product(target, product, dtype)
            new = set(directory.iterdir()) - before
            found[f"{name}, {dtype}"] = figures = of_tpu(new, text) if on_tpu else of_gpu(new)
            print(f"{target}  fp32 x {dtype:8}  {name:17}  {figures}", flush=True)
    return found


def compile_product(target: str, product, dtype: str) -> str:
    here = SingleDeviceSharding(targets.device(target))
    shapes = ((COMPILED_TOKENS, WORDS), jnp.float32), ((WORDS, COMPILED_WIDTH), dtype)
    x, y = (jax.ShapeDtypeStruct(*given, sharding=here) for given in shapes)
    return jax.jit(lambda x, y: product(x, y)).lower(x, y).compile().as_text()


def of_tpu(files: set[Path], text: str) -> dict:
    """Matrix instructions of all final schedules by kind, bundles, and XLA's estimate of cycles."""
    schedules = [
        f for f in files if re.search(r"-\d+-final_bundles\.txt$", f.name) and "schedule-analysis" not in f.name
    ]
    lines = [line for file in schedules for line in file.read_text().splitlines()]
    bundles = [line for line in lines if re.match(r"\s*(0x[0-9a-f]+|0)\s[^:]*:", line)]
    kinds = Counter(kind for line in bundles for kind in re.findall(r"\bvmatmul\.(?:mubr\.)?(\w+)", line))
    cycles = [int(x) for x in re.findall(r'"estimated_cycles":"(\d+)"', text)]
    return {"matrix_instructions": dict(kinds), "bundles": len(bundles), "estimated_cycles": sum(cycles)}


def of_gpu(files: set[Path]) -> dict:
    """Instructions that multiply, by kind."""
    ptx = "".join(file.read_text() for file in files if file.suffix == ".ptx")
    kinds = Counter(re.findall(r"\b((?:wgmma\.mma_async|mma)\.sync[\w.]*|fma\.rn\.f32(?:x2)?)", ptx))
    return {"instructions": dict(kinds)}


if __name__ == "__main__":
    main()
