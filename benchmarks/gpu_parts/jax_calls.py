"""JAX's side of the part `attention`: calls by name (attention.py says which), prepared and timed when asked."""

import argparse
import contextlib
import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax.attention import attention, pallas_gpu
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask
from benchmarks.gpu_parts import rows
from benchmarks.gpu_parts.attention import base_arrays
from benchmarks.gpu_parts.part import Unavailable
from benchmarks.gpu_parts.workers import enough_calls, seconds, serve


def ours(q, k, v, plan):
    return attention(q, k, v, plan, implementation="pallas_gpu")


def ours_with_plan(q, k, v, plan):
    return ours(q, k, v, planned(plan.mask))


def planned(mask: Mask):
    return make_plan(mask, *pallas_gpu.default_tiles(jax.devices()[0].device_kind, mask.q_index_BT.shape[1]))


def cudnn(q, k, v, *_):
    if jax.default_backend() != "gpu":
        raise Unavailable("cuDNN needs a GPU")
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def tokamax(q, k, v, *_):
    try:
        import tokamax
    except ImportError as error:
        raise Unavailable(f"tokamax cannot be imported: {error}") from error
    kernels = ("mosaic", "triton") if jax.default_backend() == "gpu" else "xla"
    return tokamax.dot_product_attention(q, k, v, is_causal=True, implementation=kernels)


ATTENTIONS = {
    "kernels": ours,
    "plan_and_kernels": ours_with_plan,
    "full": ours,
    "cudnn_full": cudnn,
    "tokamax_full": tokamax,
}


class Calls:
    def __init__(self, dry_run: bool):
        self._dry_run = dry_run
        self._functions = {("plan", "plan"): jax.jit(lambda q, k, v, do, plan: planned(plan.mask))}
        for name, attend in ATTENTIONS.items():
            self._functions[name, "forward"] = jax.jit(_forward(attend))
            self._functions[name, "forward_backward"] = jax.jit(forward_backward(attend))
        self._counts: dict[tuple, int] = {}

    def answer(self, name="", which="", length=0, layout="", prepare=False, forget=False):
        """Seconds of a call, or what is known of it once it is compiled."""
        if forget:
            self._arrays.cache_clear()
            self._plan.cache_clear()
            return None
        function, key = self._functions[name, which], (name, which, length, layout)
        call = functools.partial(function, *self._arrays(length), self._plan(length, layout, name == "full"))
        if not prepare:
            return seconds(call, jax.block_until_ready, self._counts[key])
        started = time.perf_counter()
        out = jax.block_until_ready(call())
        first_s = time.perf_counter() - started
        self._counts[key] = enough_calls(seconds(call, jax.block_until_ready, 2))
        known = {"first_s": first_s, "calls": self._counts[key]}
        if which == "plan":
            return known
        last = [np.asarray(x[0, -1, :2], np.float32) for x in jax.tree.leaves(out)[:2]]
        return known | {"answer": np.stack(last).ravel().tolist()}

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one object, for the life of the process
    def _arrays(self, length: int):
        """bf16 q, k, v and the cotangent [1, length, heads, width]."""
        bases = base_arrays(self._dry_run, length)
        return [jnp.tile(jnp.asarray(x, jnp.bfloat16), (length // len(x), 1, 1))[None] for x in bases]

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _plan(self, length: int, layout: str, full: bool):
        segments = rows.segment_ids(rows.document_lengths(layout, length))
        mask = Mask.from_segments(jnp.asarray(np.zeros_like(segments) if full else segments), int(not full))
        return jax.jit(planned)(mask)


def _forward(attend):
    return lambda q, k, v, do, plan: attend(q, k, v, plan)


def forward_backward(attend):
    def both(q, k, v, do, plan):
        out, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, plan), q, k, v)
        return out, *vjp(do)

    return both


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry-run", action="store_true")
    dry_run = parser.parse_args().dry_run
    del sys.argv[1:]  # tokamax reads absl's flags from there
    with pallas_gpu.interpreted() if dry_run else contextlib.nullcontext():
        serve(Calls(dry_run).answer)


if __name__ == "__main__":
    main()
