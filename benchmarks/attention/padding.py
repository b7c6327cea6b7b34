"""What it costs that attention reads padding as zeros: projections, rotation and attention, with it and without.

    python -m benchmarks.attention.padding [--repeats=25] [--targets=v5e] [--json]

Forward and backward, rows of documents of 1024 tokens behind an anchor and 100 tokens of padding. On the CPU *measured*
on `xla`: both alternate, medians, and the median ratio of neighbours. For `--targets` *compiled* with the target's
kernels (32 query heads of width 128 over 8, 32K tokens): bytes that XLA counts, its estimate of cycles outside of the
kernels, and temporaries.
"""

import argparse
import json
import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from anchorjax import targets
from anchorjax.attention import MODULES, attention, gradient
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask, padding_as_zeros
from anchorjax.models import rope

DOCUMENT, PADDING = 1024, 100
# Tokens, query heads, key heads, width, dtype.
MEASURED = ((4096, 2, 1, 32, "bfloat16"), (4096, 2, 1, 32, "float32"), (2048, 9, 3, 64, "float32"))
COMPILED = (2**15, 32, 8, 128, "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=25, help="timed calls of each")
    parser.add_argument("--targets", default="v5e", help="to compile for, comma separated; empty: none")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    targets.prepare()
    results = {}
    for shape in MEASURED:
        results[str(shape)] = figures = measure(shape, arguments.repeats)
        print(shape, figures, flush=True)
    for target in filter(None, arguments.targets.split(",")):
        results[target] = figures = {how: compile_for(target, how == "zeros") for how in ("without", "zeros")}
        print(target, figures, flush=True)
    if arguments.json:
        print(json.dumps(results))


def layer(implementation: str, zeros: bool, plan, x_TD, weights, tables, dout_TD):
    """Output and gradients of a layer without its feed-forward part."""
    gradient.padding_as_zeros = padding_as_zeros if zeros else (lambda x, segment_ids: x)  # what is traced now

    def forward(x_TD, q_DNH, k_DKH, v_DKH, o_NHD):
        q, k, v = (jnp.einsum("td,dnh->tnh", x_TD, weight)[None] for weight in (q_DNH, k_DKH, v_DKH))
        q, k = (rope.rotate(x, *tables, "float32") for x in (q, k))
        out_1TNH = attention(q, k, v, plan, implementation=implementation)
        return jnp.einsum("tnh,nhd->td", out_1TNH[0], o_NHD)

    out_TD, vjp = jax.vjp(forward, x_TD, *weights)
    return out_TD, vjp(dout_TD)


def shapes(T: int, N: int, K: int, H: int, dtype: str):
    """Shapes of x, weights, tables and the cotangent."""
    array = jax.ShapeDtypeStruct
    D = N * H
    weights = array((D, N, H), dtype), array((D, K, H), dtype), array((D, K, H), dtype), array((N, H, D), dtype)
    return array((T, D), dtype), weights, (array((1, T, H // 2), jnp.float32),) * 2, array((T, D), dtype)


def measure(shape, repeats: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    arrays = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / shape[3], x.dtype), shapes(*shape))
    T = shape[0]
    segment_ids_T = 1 + np.arange(T) // DOCUMENT
    segment_ids_T[0], segment_ids_T[-PADDING:] = 0, -1
    mask = Mask.from_segments(jnp.asarray(segment_ids_T[None], jnp.int32), 1)
    plan = make_plan(mask, *MODULES["xla"].default_tiles("cpu", T))
    compiled = [
        jax.jit(lambda *arrays, zeros=zeros: layer("xla", zeros, plan, *arrays)).lower(*arrays).compile()
        for zeros in (False, True)
    ]
    times = ([], [])
    for call in range(2 * (repeats + 1)):
        which = (call + call // 2) % 2  # 0 1 1 0: neither is always the first
        started = time.perf_counter()
        jax.block_until_ready(compiled[which](*arrays))
        times[which].append(time.perf_counter() - started)
    without, zeros = (of[1:] for of in times)  # the first of each warms up
    ratios = [b / a for a, b in zip(without, zeros, strict=True)]
    return {
        "without_ms": 1e3 * statistics.median(without),
        "zeros_ms": 1e3 * statistics.median(zeros),
        "ratio": statistics.median(ratios),
    }


def compile_for(target: str, zeros: bool) -> dict[str, float]:
    here, name = SingleDeviceSharding(targets.device(target)), "pallas_tpu" if target in targets.TPUS else "pallas_gpu"
    tiles = MODULES[name].default_tiles(target, COMPILED[0])
    mask = jax.eval_shape(lambda s: Mask.from_segments(s, 1), jax.ShapeDtypeStruct((1, COMPILED[0]), jnp.int32))
    plan = jax.eval_shape(lambda mask: make_plan(mask, *tiles), mask)
    put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)  # noqa: E731
    arguments = jax.tree.map(put, (plan, *shapes(*COMPILED)))
    compiled = jax.jit(lambda *arguments: layer(name, zeros, *arguments)).lower(*arguments).compile()
    cycles = re.findall(r'"estimated_cycles":"(\d{1,15})"', compiled.as_text())
    return {
        "bytes": compiled.cost_analysis()["bytes accessed"],
        "estimated_cycles": sum(map(int, cycles)),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
    }


if __name__ == "__main__":
    main()
