"""PyTorch's side of the part `attention`: calls by name (attention.py says which), prepared and timed when asked.

A call takes `backward` and returns the last piece of the output [heads, tokens, width], and with it that of dq. On a
CPU (dry runs) numbers are fp32 and flex_attention is not compiled: its code for CPUs has no backward pass.
"""

import argparse
import functools
import inspect
import time
from collections.abc import Callable

from benchmarks.gpu_parts import rows
from benchmarks.gpu_parts.attention import base_arrays
from benchmarks.gpu_parts.part import Unavailable
from benchmarks.gpu_parts.workers import enough_calls, seconds, serve

try:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.functional import scaled_dot_product_attention
except ImportError:
    torch = None


class Calls:
    def __init__(self, dry_run: bool):
        if torch is None:
            raise Unavailable("torch cannot be imported")
        self._dry_run, self._on_gpu = dry_run, torch.cuda.is_available()
        self._device, self._dtype = ("cuda", torch.bfloat16) if self._on_gpu else ("cpu", torch.float32)
        compiled = functools.partial(torch.compile, dynamic=False) if self._on_gpu else lambda function: function
        self._flex_attention, self._create_block_mask = compiled(flex_attention), compiled(create_block_mask)
        torch._dynamo.config.recompile_limit = 64  # four lengths, two passes: 8 would be the last one compiled
        self._makers = {
            "flex": self._flex,
            "flex_block_mask": self._flex_block_mask,
            "varlen_copied": self._varlen,
            "sdpa_copied": self._sdpa,
        }
        self.forget()

    def forget(self) -> None:
        """Frees what belongs to a length."""
        self._calls: dict[tuple, Callable] = {}
        self._counts: dict[tuple, int] = {}
        self._notes: dict[tuple, str] = {}
        self._kept: dict[tuple, object] = {}
        if self._on_gpu:
            torch.cuda.empty_cache()

    def answer(self, name: str, which: str, length: int, layout: str, prepare: bool = False):
        """Seconds of a call, or what is known of it once it is compiled."""
        place, key = (name, length, layout), (name, which, length, layout)
        if name == "flex" and which == "forward_backward" and not self._on_gpu:
            raise Unavailable("flex_attention's backward pass needs a GPU")
        started = time.perf_counter()
        if place not in self._calls:
            self._calls[place] = self._makers[name](length, layout)
        call = functools.partial(self._calls[place], which == "forward_backward")
        if not prepare:
            return seconds(call, self._wait, self._counts[key])
        out = call()
        self._wait(out)
        first_s = time.perf_counter() - started
        self._counts[key] = enough_calls(seconds(call, self._wait, 2))
        known = {"first_s": first_s, "calls": self._counts[key], "note": self._notes.get(place)}
        if which == "plan":
            return known
        return known | {"answer": [x for one in out for x in one[:2, -1].detach().float().cpu().ravel().tolist()]}

    def _wait(self, _) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()

    def _once(self, key: tuple, make: Callable):
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _arrays(self, length: int):
        """q, k, v and the cotangent [length, heads, width]."""

        def make():
            bases = base_arrays(self._dry_run, length)
            return [torch.tensor(x, device=self._device).to(self._dtype).repeat(length // len(x), 1, 1) for x in bases]

        return self._once(("arrays", length), make)

    def _rule(self, length: int, layout: str):
        """The anchor mask. All layouts of a length share one buffer and one function: nothing is compiled anew."""

        def make():
            document_T = torch.zeros(length, dtype=torch.int32, device=self._device)

            def rule(b, h, q, kv):
                return (q >= kv) & ((document_T[q] == document_T[kv]) | (kv == 0))

            return document_T, rule

        document_T, rule = self._once(("rule", length), make)
        document_T.copy_(torch.tensor(rows.segment_ids(rows.document_lengths(layout, length))[0]))
        return rule

    def _flex_block_mask(self, length: int, layout: str):
        rule = self._rule(length, layout)
        return lambda _: self._create_block_mask(rule, None, None, length, length, device=self._device)

    def _flex(self, length: int, layout: str):
        block_mask = self._flex_block_mask(length, layout)(False)
        q, k, v, do = (x.transpose(0, 1)[None].contiguous() for x in self._arrays(length))
        attend = functools.partial(self._flex_attention, block_mask=block_mask, enable_gqa=True)
        return functools.partial(_run, lambda q, k, v: attend(q, k, v)[0], (q, k, v), do[0])

    def _copied(self, length: int, layout: str):
        """Tokens of each document with its copy of the anchor, and the arrays [tokens, heads, width] of all."""

        def make():
            lengths = rows.document_lengths(layout, length)
            index = torch.tensor(rows.copied_index(lengths), device=self._device)
            return (1 + lengths).tolist(), [x[index].contiguous() for x in self._arrays(length)]

        return self._once(("copied", length, layout), make)

    def _varlen(self, length: int, layout: str):
        if not self._on_gpu:
            raise Unavailable("torch.nn.attention.varlen needs a GPU")
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError as error:
            raise Unavailable(f"torch.nn.attention.varlen cannot be imported: {error}") from error
        sizes, (q, k, v, do) = self._copied(length, layout)
        ends = torch.tensor([0, *sizes], device=self._device).cumsum(0).to(torch.int32)
        known = inspect.signature(varlen_attn).parameters  # they still change
        options = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
        options |= {"enable_gqa": True} if "enable_gqa" in known else {}

        def attend(q, k, v):
            return varlen_attn(q, k, v, ends, ends, max(sizes), max(sizes), **options).transpose(0, 1)

        try:
            attend(q, k, v)
        except (RuntimeError, ValueError):  # of versions that want as many key heads as query heads
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            self._notes["varlen_copied", length, layout] = "key heads repeated beforehand"
        return functools.partial(_run, attend, (q, k, v), do.transpose(0, 1))

    def _sdpa(self, length: int, layout: str):
        sizes, arrays = self._copied(length, layout)
        q, k, v, do = ([part.transpose(0, 1)[None].contiguous() for part in x.split(sizes)] for x in arrays)

        def call(backward: bool):
            with torch.set_grad_enabled(backward):
                parts = [[x.detach().requires_grad_(backward) for x in part] for part in zip(q, k, v, strict=True)]
                outs = [scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts]
                if not backward:
                    return [outs[-1][0]]
                gradients = torch.autograd.grad(outs, [x for part in parts for x in part], do)
                return [outs[-1][0], gradients[-3][0]]

        return call


def _run(attend, qkv, do, backward: bool):
    """`attend` of leaves, and its gradient."""
    with torch.set_grad_enabled(backward):
        leaves = [x.detach().requires_grad_(backward) for x in qkv]
        out = attend(*leaves)
        if not backward:
            return [out]
        dq = torch.autograd.grad(out, leaves, do)[0]
        return [out, dq[0] if dq.shape[0] == 1 else dq.transpose(0, 1)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry-run", action="store_true")
    dry_run = parser.parse_args().dry_run
    calls = None

    def answer(forget: bool = False, **request):
        nonlocal calls
        calls = calls or Calls(dry_run)
        return calls.forget() if forget else calls.answer(**request)

    serve(answer)


if __name__ == "__main__":
    main()
