"""The cases of the part `contract`: what is compiled for each, and what is compared."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax.attention import attention, leakage, pallas_gpu
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask
from benchmarks.gpu_parts import rows
from tests.attention import contract as oracle

FP32_TOLERANCE = oracle.TOLERANCE  # 2e-5: TF32 products, the usual fault, are at 1e-3
BF16_TOLERANCE = 1e-2  # one rounding of each number to bf16 is 1.7e-3; a gradient has three on its way
DRAWS = (("contiguous", "interleaved"), ("one", "dead"), ("interleaved", "contiguous"))  # two rows each
ARRAYS = ("out", "dq", "dk", "dv")


def tiles_of(tiles: tuple[int, int] | None, T: int) -> tuple[int, int]:
    return tiles or pallas_gpu.default_tiles(jax.devices()[0].device_kind, T)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Drawn layouts against float64. `T` is no multiple of a tile unless said."""

    dtype: str
    heads: tuple[int, int, int]  # query heads, key heads, width
    anchors: int = 1
    window: int | None = None
    soft_cap: float | None = None
    T: int = 331
    tiles: tuple[int, int] | None = None

    def compile(self):
        """(ours, reference, dense bf16 or None) as compiled functions of a case."""
        case = self._case(0)
        arrays = case.q, case.k, case.v, case.cotangent
        tiles = tiles_of(self.tiles, self.T)
        lower = oracle.forward_and_vjp.lower
        ours = lower(*arrays, case.mask, "pallas_gpu", tiles).compile()
        reference = lower(*arrays, case.mask, "reference", tiles).compile()
        dense = None
        if self.dtype == "bfloat16" and self.soft_cap is None:
            dense = oracle.dense_bfloat16.lower(*arrays, case.mask.materialize()).compile()
        return ours, reference, dense

    def check(self, compiled) -> dict:
        ours, reference, dense = compiled
        worst, beside, lse_error, same, zeros = ("", 0.0), 0.0, 0.0, True, True
        for seed in range(len(DRAWS)):
            case = self._case(seed)
            arrays = case.q, case.k, case.v, case.cotangent
            out, lse, *gradients = found = [np.asarray(x) for x in ours(*arrays, case.mask)]
            again = ours(*arrays, case.mask)
            same &= all(np.array_equal(x, np.asarray(y)) for x, y in zip(found, again, strict=True))
            pads_BT = np.asarray(case.mask.q_segment_ids_BT) == -1
            zeros &= all(not np.any(np.asarray(x, np.float32)[pads_BT]) for x in (out, *gradients))
            exact = oracle.float64_gradients(case)
            errors = self.errors((out, *gradients), exact)
            worst = max(worst, max(errors.items(), key=lambda item: item[1]), key=lambda item: item[1])
            other_out, other_lse, *other = reference(*arrays, case.mask)
            lse_error = max(lse_error, error("float32", lse, other_lse))
            plain = dense(*arrays, case.mask.materialize()) if dense else (other_out, *other)
            beside = max(beside, *self.errors(plain, exact).values())
        tolerance = FP32_TOLERANCE if self.dtype == "float32" else BF16_TOLERANCE
        return {
            "error": worst[1],
            "of": worst[0],
            "tolerance": tolerance,
            "beside": beside,  # the same of a dense bf16 computation, or of `reference` (fp32, soft caps)
            "lse_error": lse_error,
            "same_twice": same,
            "pads_zero": zeros,
            # Not-a-number is no number below the tolerance. The log-sum-exp is fp32 in both dtypes.
            "passed": bool(worst[1] <= tolerance and lse_error <= FP32_TOLERANCE and same and zeros),
        }

    def errors(self, got, exact) -> dict[str, float]:
        return {name: error(self.dtype, x, y) for name, x, y in zip(ARRAYS, got, exact, strict=True)}

    def _case(self, seed: int) -> oracle.Case:
        rng = np.random.default_rng(seed)
        segments = np.stack([segments_of(kind, rng, self.T, self.anchors) for kind in DRAWS[seed]])
        return oracle.make_case(
            segments, self.anchors, *self.heads, self.dtype, seed, window=self.window, soft_cap=self.soft_cap
        )


def error(dtype: str, got, exact) -> float:
    """See contract.py; infinite where there is not-a-number."""
    got, exact = np.asarray(got, np.float64), np.asarray(exact, np.float64)
    if not np.isfinite(got).all():
        return float("inf")
    if dtype == "float32":
        return float(np.max(np.abs(got - exact) / (1 + np.abs(exact))))
    return float(np.linalg.norm(got - exact) / (np.linalg.norm(exact) or 1.0))


def segments_of(kind: str, rng: np.random.Generator, T: int, anchors: int) -> np.ndarray:
    """Segment ids [T] of anchors, documents of 1 to T / 3 tokens, and some pads."""
    if kind == "dead":
        return np.full(T, -1, np.int32)
    pads = int(rng.integers(0, T // 4)) if kind != "one" else 0
    body = T - anchors - pads
    pieces = rng.integers(1, T // 3, size=8)
    ids = np.repeat(np.arange(1, 9), pieces)
    ids = np.resize(ids, body) if kind == "interleaved" else np.pad(ids, (0, T), mode="edge")[:body]
    if kind == "interleaved":  # short turns, so that tiles hold many documents
        ids = 1 + np.arange(body) // int(rng.integers(3, 40)) % 5
    ids = np.ones(body, int) if kind == "one" else ids
    return np.concatenate([np.zeros(anchors), ids, np.full(pads, -1)]).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Leakage:
    """One changed token, one cotangent: who notices?"""

    dtype: str
    heads: tuple[int, int, int]
    anchors: int = 1
    window: int | None = None
    T: int = 331
    tiles: tuple[int, int] | None = None

    def compile(self):
        rng = np.random.default_rng(7)
        segments = np.stack([segments_of(kind, rng, self.T, self.anchors) for kind in DRAWS[0]])
        mask = Mask.from_segments(jnp.asarray(segments), self.anchors, self.window)
        return make_plan(mask, *tiles_of(self.tiles, self.T))

    def check(self, plan) -> dict:
        attend = jax.jit(functools.partial(attention, implementation="pallas_gpu"))
        tokens = leakage.probe_tokens(np.asarray(plan.mask.q_segment_ids_BT))
        N, K, H = self.heads
        of_heads = {"num_heads": N, "num_kv_heads": K, "head_dim": H, "dtype": self.dtype}
        findings = leakage.probe(attend, plan, tokens, **of_heads)
        findings += leakage.probe_gradients(attend, plan, tokens, **of_heads)
        leaks, blind = (sum(len(getattr(one, name)) for one in findings) for name in ("leaks", "blind"))
        return {"probes": len(findings), "leaks": leaks, "blind": blind, "passed": leaks + blind == 0}


@dataclasses.dataclass(frozen=True)
class Long:
    """A row of documents against `reference` on the device."""

    dtype: str
    heads: tuple[int, int, int]
    anchors: int = 1
    T: int = 8192
    tiles: tuple[int, int] | None = None

    def compile(self):
        segments = rows.segment_ids(rows.document_lengths("linux", self.T))
        case = oracle.make_case(segments, self.anchors, *self.heads, self.dtype)
        tiles = tiles_of(self.tiles, self.T)
        arguments = case.q, case.k, case.v, case.cotangent, case.mask
        lower = functools.partial(oracle.forward_and_vjp.lower, *arguments)
        return arguments, lower("pallas_gpu", tiles).compile(), lower("reference", tiles).compile()

    def check(self, compiled) -> dict:
        arguments, ours, reference = compiled
        out, lse, *gradients = ours(*arguments)
        other_out, other_lse, *other = reference(*arguments)
        errors = {
            name: error(self.dtype, x, y)
            for name, x, y in zip(ARRAYS, (out, *gradients), (other_out, *other), strict=True)
        }
        return verdict(self.dtype, errors | {"lse": error("float32", lse, other_lse)})


@dataclasses.dataclass(frozen=True)
class Far:
    """The last two documents of a row whose arrays are above 4 GB; numbers repeat along it."""

    dtype: str = "bfloat16"
    heads: tuple[int, int, int] = (20, 4, 128)
    T: int = 2**20
    period: int = 2**13
    document: int = 2048

    def compile(self):
        documents = 1 + (np.arange(self.T, dtype=np.int32) - 1) // self.document  # token 0 gets 0
        mask = Mask.from_segments(jnp.asarray(documents)[None], 1)
        N, K, H = self.heads
        shapes = [jax.ShapeDtypeStruct((1, self.T, heads, H), self.dtype) for heads in (N, K, K, N)]
        return mask, oracle.forward_and_vjp.lower(*shapes, mask, "pallas_gpu", tiles_of(None, self.T)).compile()

    def check(self, compiled) -> dict:
        mask, ours = compiled
        N, K, H = self.heads
        keys = jax.random.split(jax.random.key(0), 4)
        arrays = [
            jnp.tile(jax.random.normal(key, (1, self.period, heads, H), self.dtype), (1, self.T // self.period, 1, 1))
            for key, heads in zip(keys, (N, K, K, N), strict=True)
        ]
        start = self.T - 2 * self.document + 1  # the last document lacks the anchor's place
        behind = [np.asarray(x[:, start:]) for x in ours(*arrays, mask)]
        short = [jnp.concatenate([x[:, :1], x[:, start:]], 1) for x in arrays]
        segments = np.asarray(mask.q_segment_ids_BT)[:, [0, *range(start, self.T)]]
        short_mask = Mask.from_segments(jnp.asarray(segments), 1)
        wanted = oracle.forward_and_vjp(*short, short_mask, "reference", (128, 128))
        errors = {
            name: error("float32" if name == "lse" else self.dtype, x, y[:, 1:])
            for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), behind, wanted, strict=True)
        }
        return verdict(self.dtype, errors) | {"gigabytes_of_q": arrays[0].nbytes / 1e9}


def verdict(dtype: str, errors: dict[str, float]) -> dict:
    """Errors of arrays, compared as their dtype asks for, and of the log-sum-exp, which is fp32."""
    lse_error = errors.pop("lse")
    name, worst = max(errors.items(), key=lambda item: item[1])
    tolerance = FP32_TOLERANCE if dtype == "float32" else BF16_TOLERANCE
    passed = worst <= tolerance and lse_error <= FP32_TOLERANCE
    return {"error": worst, "of": name, "tolerance": tolerance, "lse_error": lse_error, "passed": passed}


def cases(dry_run: bool) -> list:
    """The most telling ones first."""
    if dry_run:
        small = {"T": 83, "tiles": (16, 32)}
        return [
            Numbers("float32", (2, 1, 16), 1, window=20, soft_cap=3.0, **small),
            Numbers("bfloat16", (2, 1, 16), 2, **small),
            Leakage("bfloat16", (2, 1, 16), **small),
            Long("float32", (2, 1, 16), T=160, tiles=(32, 32)),
            Far(heads=(2, 1, 16), T=256, period=64, document=64),
        ]
    numbers = [
        Numbers(dtype, *shape)
        for shape in (
            ((4, 2, 64),),
            ((2, 1, 128),),
            ((2, 1, 80), 2, 70),
            ((3, 1, 96), 0, None, 2.0),
            ((2, 2, 256), 1, 90, 3.0),
            ((2, 1, 128), 1, None, None, 384),  # whole tiles: no masked loads
            ((2, 1, 192), 2, None, None, 331, (64, 16)),
            ((2, 1, 64), 17, None, None, 331, (32, 128)),  # more anchors than a matmul's smallest side
        )
        for dtype in ("bfloat16", "float32")
    ]
    probes = [
        Leakage(dtype, heads, anchors, window)
        for dtype, heads, anchors, window in (
            ("bfloat16", (4, 2, 128), 1, None),
            ("float32", (4, 2, 64), 2, 50),
            ("bfloat16", (2, 1, 80), 0, None),
        )
    ]
    long = [Long(dtype, (2, 1, 128)) for dtype in ("bfloat16", "float32")]
    return [*numbers[:4], *probes, *numbers[4:], *long, Far()]
