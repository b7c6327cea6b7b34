"""Attention on the CPU: `xla` with the anchor mask, with the full mask, dense, and PyTorch's, alternating in one run.

    python -m benchmarks.attention.cpu_attention [--lengths=2048,8192] [--repeats=5] [--json]

One layer of SmolLM2-135M's attention (9 heads of width 64 over 3 key heads), fp32, one row of documents of about
1024 tokens (lengths uniform in 512..1536), all on the same threads. The calls:

    anchor           `xla`, anchor mask          torch_causal     scaled_dot_product_attention(is_causal=True)
    full             `xla`, full mask            torch_documents  the same for each document alone
    dense            softmax(q k') v with a dense causal mask, differentiated by JAX (to 4096 tokens)

PyTorch takes part if it is installed. Every round makes each call once. Reported are medians over the rounds, and for
`PAIRS` the median of the ratios within a round (`anchor_over_full`; `..._forward` is the forward pass alone), which a
machine that slows down for a while disturbs least. The plan of live tiles is built beforehand, as once a step for
all layers; its own time is reported beside.
"""

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax.attention import MODULES, attention
from anchorjax.attention.plan import classify_tiles, make_plan
from anchorjax.masks import Mask

N, K, H = 9, 3, 64
LENGTHS = (2048, 4096, 8192, 16384, 32768)
PAIRS = (
    ("anchor", "full"),
    ("dense", "full"),
    ("dense", "anchor"),
    ("full", "torch_causal"),
    ("torch_causal", "anchor"),
    ("anchor", "torch_documents"),
)
DENSE_LIMIT = 4096  # at 8192 tokens one fp32 array of scores is 2.4 GB, and the gradient keeps several


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="row lengths, comma separated")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each kind; beyond 8192 tokens fewer")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    results = {}
    for length in map(int, arguments.lengths.split(",")):
        repeats = max(1, arguments.repeats * 8192 // max(length, 8192))
        results[str(length)] = row = measure(length, repeats)
        print(f"row of {length}", *(f"  {name:<36} {value:.4f}" for name, value in row.items()), sep="\n", flush=True)
    if arguments.json:
        print(json.dumps(results))


def measure(length: int, repeats: int) -> dict[str, float]:
    """Seconds of each call, forward alone and with the backward pass, and the ratios that the comparison is about."""
    rng = np.random.default_rng(0)
    lengths = document_lengths(rng, length)
    arrays = [rng.normal(size=(1, length, heads, H)).astype("float32") for heads in (N, K, K, N)]
    segments = {"anchor": np.repeat(np.arange(len(lengths) + 1), [1, *lengths])[None], "full": np.zeros((1, length))}
    masks = {name: Mask.from_segments(jnp.asarray(x, jnp.int32), int(name == "anchor")) for name, x in segments.items()}
    passes = {"forward": False, "forward_backward": True}
    calls = {
        (name, title): xla_call(arrays, mask, backward)
        for title, backward in passes.items()
        for name, mask in masks.items()
    }
    for title, backward in passes.items():
        if length <= DENSE_LIMIT:
            calls["dense", title] = dense_call(arrays, backward)
        calls |= {(name, title): call for name, call in torch_calls(arrays, [1, *lengths], backward).items()}
    seconds = alternate(calls, repeats)
    result = {f"{name}_{title}_s": statistics.median(times) for (name, title), times in seconds.items()}
    result["plan_s"] = statistics.median(alternate({"plan": plan_call(masks["anchor"])}, repeats)["plan"])
    live = {
        name: int(jnp.sum(classify_tiles(mask, *MODULES["xla"].default_tiles("cpu"))[0]))
        for name, mask in masks.items()
    }
    result["live_tile_ratio"] = live["anchor"] / live["full"]
    for title, suffix in (("forward_backward", ""), ("forward", "_forward")):
        for one, other in PAIRS:
            if (one, title) in seconds and (other, title) in seconds:
                result[f"{one}_over_{other}{suffix}"] = ratio(seconds[one, title], seconds[other, title])
    return result


def document_lengths(rng: np.random.Generator, length: int) -> list[int]:
    """Documents of 512 to 1536 tokens that fill a row behind its anchor; the last one is cut."""
    lengths = [int(n) for n in rng.integers(512, 1537, length // 512 + 1)]
    ends = np.minimum(np.cumsum(lengths), length - 1)
    return [int(n) for n in np.diff(ends, prepend=0) if n]


def alternate(calls: dict, repeats: int) -> dict[object, list[float]]:
    """Seconds of each call, taken in turns; one call of each beforehand compiles."""
    for call in calls.values():
        call()
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median ratio of the seconds of two calls, round by round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def xla_call(arrays: list[np.ndarray], mask: Mask, backward: bool) -> Callable[[], None]:
    plan = jax.jit(make_plan, static_argnums=(1, 2))(mask, *MODULES["xla"].default_tiles("cpu"))

    def attend(q, k, v, plan):
        return attention(q, k, v, plan, implementation="xla")

    return jax_call(attend, arrays, backward, plan)


def plan_call(mask: Mask) -> Callable[[], None]:
    make = jax.jit(make_plan, static_argnums=(1, 2))
    return lambda: jax.block_until_ready(make(mask, *MODULES["xla"].default_tiles("cpu")))


def dense_call(arrays: list[np.ndarray], backward: bool) -> Callable[[], None]:
    def attend(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")

    return jax_call(attend, arrays, backward)


def jax_call(attend, arrays: list[np.ndarray], backward: bool, *rest) -> Callable[[], None]:
    *qkv, cotangent = map(jnp.asarray, arrays)

    @jax.jit
    def both(q, k, v, cotangent, *rest):
        out, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, *rest), q, k, v)
        return out, vjp(cotangent)

    if backward:
        return lambda: jax.block_until_ready(both(*qkv, cotangent, *rest))
    forward = jax.jit(attend)
    return lambda: jax.block_until_ready(forward(*qkv, *rest))


def torch_calls(arrays: list[np.ndarray], lengths: list[int], backward: bool) -> dict[str, Callable[[], None]]:
    """PyTorch's kernel over the whole row and over each document alone; none if it is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(os.cpu_count())
    sdpa = functools.partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
    heads_first = [torch.tensor(x.transpose(0, 2, 1, 3)).contiguous() for x in arrays]
    documents = [[part.contiguous() for part in x.split(lengths, dim=2)] for x in heads_first]

    def call(parts):
        with torch.set_grad_enabled(backward):
            for q, k, v, cotangent in parts:
                if not backward:
                    sdpa(q, k, v)
                    continue
                leaves = [x.detach().requires_grad_() for x in (q, k, v)]
                sdpa(*leaves).backward(cotangent)

    return {
        "torch_causal": lambda: call([heads_first]),
        "torch_documents": lambda: call(list(zip(*documents, strict=True))),
    }


if __name__ == "__main__":
    main()
