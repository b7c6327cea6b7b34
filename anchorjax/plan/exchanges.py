"""What devices exchange in a training step: counted from its compiled program by place, and by formula from its sizes.

Bytes are those that a device receives from the others in a whole step, by the usual algorithms: an all-reduce is a
reduce-scatter and an all-gather. `program` finds how often each collective runs, and `groups` along which axes of the
mesh.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from anchorjax import sharding
from anchorjax.config import Config
from anchorjax.models.flops import layer_weights
from anchorjax.plan import program
from anchorjax.plan.groups import axes_of
from anchorjax.plan.program import Collective
from anchorjax.training.objectives.longce import SCOPE

SMALL = 1e6
_ATTENTION = r"while/body.*/shard_map/.*(all_gather|all_to_all|ppermute)"
# By the path of JAX's operations, the first that fits; the rest runs once a micro-batch or step. Weights of a chunked
# feed-forward layer have attention's paths too: `places` knows them by their axes, unless they are cut along `context`.
PLACES = {
    "short windows": rf"{SCOPE}/",
    "backward attention": r"transpose\(jvp\(\)\)/" + _ATTENTION,
    "backward layer": r"transpose\(jvp\(\)\)/while/body",
    "loss chunk": r"jvp\(\)/shard_map/while/body",
    "forward attention": r"jvp\(\)/" + _ATTENTION,
    "forward layer": r"jvp\(\)/while/body",
}
DTYPES = {"bfloat16": "bf16", "float32": "f32"}


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What one kind of collective moves in one place of a step.

    Attributes:
      place: a key of PLACES, or "once".
      kind: of the collective.
      axes: of the mesh, along which devices exchange.
      received: bytes that a device receives from others in a step.
      is_overlapped: whether the schedule has computation beside it; by formula, whether it can have: weights and
        their gradients in a layer can, activations are waited for.
    """

    place: str
    kind: str
    axes: tuple[str, ...]
    received: float
    is_overlapped: bool


@functools.lru_cache(maxsize=1)  # the step on other documents is the same program
def of(hlo: str, mesh: Mesh) -> tuple[Exchange, ...]:
    """The exchanges of a compiled step, summed over collectives that differ in nothing else.

    Args:
      hlo: the optimized program's text.
      mesh: that it was compiled for.

    Raises:
      ValueError: see `program.collectives`.
    """
    found, received = program.collectives(hlo), Counter()
    for one, place in zip(found, places(found, mesh), strict=True):
        received[place, one.kind, axes_of(one.groups, mesh), one.is_overlapped] += one.received
    rows = (Exchange(*row[:3], total, row[3]) for row, total in received.items())
    return tuple(sorted((row for row in rows if row.axes and row.received), key=dataclasses.astuple))


def by_axis(found: Iterable[Exchange]) -> dict[str, float]:
    """Bytes received by axes of the mesh, as "fsdp" or, where devices along both exchange at once, "fsdp+context"."""
    total = Counter()
    for one in found:
        total["+".join(one.axes)] += one.received
    return dict(sorted(total.items()))


def table(found: Sequence[Collective], mesh: Mesh) -> list[dict[str, Any]]:
    """Rows of equal collectives of at least 1 MB, with the times that a step runs them and the bytes received."""
    times, received = Counter(), Counter()
    for one, place in zip(found, places(found, mesh), strict=True):
        axes = "+".join(axes_of(one.groups, mesh))
        row = place, one.kind, axes, one.dtype, one.result_bytes, one.devices
        times[row] += one.times
        received[row] += one.received
    names = "place", "kind", "axes", "dtype", "result_bytes", "devices"
    rows = [dict(zip(names, row, strict=True)) | {"times": times[row], "received": received[row]} for row in times]
    rows = [row for row in rows if row["result_bytes"] >= SMALL and row["devices"] > 1]
    return sorted(rows, key=lambda row: (row["place"], -row["received"]))


def places(found: Sequence[Collective], mesh: Mesh) -> list[str]:
    """The place of each collective: by its path, or without one of its own where an equal collective of a loop is.

    XLA for GPUs takes iterations out of a loop, and joins their collectives there: the path is then "" or "a/(b:c)".
    Attention exchanges along `context` alone.
    """
    in_loops = {one.equal: place_of(one.path) for one in found if not one.is_in_main}

    def place(one: Collective) -> str:
        is_joined = not one.path or ":" in one.path
        where = in_loops.get(one.equal, "once") if one.is_in_main and is_joined else place_of(one.path)
        return where if "context" in axes_of(one.groups, mesh) else where.replace("attention", "layer")

    return [place(one) for one in found]


def place_of(path: str) -> str:
    return next((place for place, pattern in PLACES.items() if re.search(pattern, path)), "once")


def formula(config: Config, shape: Mapping[str, int]) -> tuple[Exchange, ...]:
    """What devices exchange in a step by formula, without biases, norms and log-sum-exps.

    Letters: F, C, X, R devices along fsdp, context, tensor and data; W weights of a layer, t tokens of a micro-batch,
    both of one device.

    Args:
      shape: devices along each axis of the mesh.
    """
    model, (F, C, X, R) = config.model, (shape[name] for name in ("fsdp", "context", "tensor", "data"))
    D, V, parts = model.d_model, model.vocab_size, config.train.grad_accum_steps
    W, t = sum(layer_weights(model)) / X, tokens(config, shape)
    wide = program.BYTES[DTYPES[model.compute_dtype]]
    exchanged = config.mesh.gradient_dtype if config.mesh.gradient_dtype != "auto" else model.compute_dtype
    sums = program.BYTES[DTYPES[exchanged]]
    also = C if config.mesh.shard_weights_over == "fsdp_context" else 1
    others, layers = R * C // also, model.num_layers * parts
    padded = -(-V // (F * X)) * F * X
    to_words = padded / (F * X) * (1 - 1 / (F * X))
    # The loss takes the output matrix whole along `context`, and its fp32 gradient goes back by parts.
    along_context = parts * padded * D / (F * X) * (1 - 1 / also)
    over_weights = ("fsdp", "context") if also > 1 else ("fsdp",)
    over_others = ("data",) if also > 1 else ("data", "context")
    # Attention's and the feed-forward layer's sums along tensor: forward; for both inputs' gradients; and attention's
    # again where it is recomputed.
    summed, times = 2 * (1 - 1 / X) * t * D, 2 if model.remat == "none" else 3
    # Along one axis after the other: along fsdp a whole layer's weights, along context the parts of them.
    shares = [("fsdp", W * (1 - 1 / F) * layers), ("context", W / F * (1 - 1 / also) * layers)]
    rows = [
        *(("forward layer", "all-gather", (axis,), wide * share) for axis, share in shares),
        *(("backward layer", "all-gather", (axis,), wide * share) for axis, share in shares),
        *(("backward layer", "reduce-scatter", (axis,), sums * share) for axis, share in shares),
        ("backward layer", "all-reduce", over_others, 2 * sums * W / (F * also) * (1 - 1 / others) * layers),
        ("forward layer", "all-reduce", ("tensor",), 2 * wide * summed * layers),
        ("backward layer", "all-reduce", ("tensor",), times * wide * summed * layers),
        ("loss chunk", "all-gather", ("fsdp",), wide * t * D * (F - 1) * parts),
        ("loss chunk", "all-reduce", ("tensor",), 4 * summed * F * parts),
        ("loss chunk", "reduce-scatter", ("fsdp",), 4 * t * D * (F - 1) * parts),
        # Embedded tokens and their gradients; columns for words of the output matrix, and back.
        ("once", "all-to-all", over_weights, parts * wide * D * 2 * t / X * (1 - 1 / (F * also))),
        ("once", "all-gather", ("tensor",), parts * wide * t * D * (1 - 1 / X)),
        ("once", "all-to-all", ("fsdp", "tensor"), parts * wide * D * to_words * (1 + 1 / also)),
        # In fp32: gradients of the embedding and of the output matrix.
        ("once", "all-reduce", over_others, parts * 2 * 4 * D * V / also / (F * X) * (1 - 1 / others)),
        ("once", "all-reduce", over_others, (also == 1) * parts * 2 * 4 * D * padded / (F * X) * (1 - 1 / others)),
        ("once", "all-gather", ("context",), wide * along_context),
        ("once", "reduce-scatter", ("context",), 4 * along_context),
        *attention(config, shape),
    ]
    hidden = "forward layer", "backward layer"
    used = lambda axes: tuple(name for name in sharding.AXES if name in axes and shape[name] > 1)  # noqa: E731
    # Sums of activations, along tensor, are waited for.
    beside = lambda place, axes: place in hidden and axes != ("tensor",)  # noqa: E731
    return tuple(Exchange(place, kind, used(axes), x, beside(place, axes)) for place, kind, axes, x in rows if x)


def attention(config: Config, shape: Mapping[str, int]) -> list[tuple[str, str, tuple[str, ...], float]]:
    """Rows (place, kind, axes, bytes) of what attention exchanges.

    The backward pass exchanges the same once more, since layers are recomputed, and gradients of as many bytes. A ring
    sends what documents ask for: here all keys and values, which is the most.
    """
    model, C, X = config.model, shape["context"], shape["tensor"]
    N, K, chunks = model.num_heads // X, model.num_kv_heads // X, config.mesh.ulysses_head_chunks
    size = 2 * model.head_dim * program.BYTES[DTYPES[model.compute_dtype]] * tokens(config, shape)
    size *= model.num_layers * config.train.grad_accum_steps * (C - 1)
    forward, backward, axes = "forward attention", "backward attention", ("context",)
    if config.mesh.context_strategy == "ulysses":
        heads = (N + chunks * math.lcm(math.lcm(K, chunks) // chunks, C)) * size / C
        return [(forward, "all-to-all", axes, heads), (backward, "all-to-all", axes, 2 * heads)]
    keys, there, back = K * size, "all-gather", "all-to-all"
    if config.mesh.context_strategy == "ring":
        there = back = "collective-permute"
    return [(forward, there, axes, keys), (backward, there, axes, keys), (backward, back, axes, keys)]


def sums(found: Iterable[Exchange]) -> dict[tuple[str, str], float]:
    """Bytes received by (place, kind)."""
    total = Counter()
    for one in found:
        total[one.place, one.kind] += one.received
    return dict(total)


def tokens(config: Config, shape: Mapping[str, int]) -> int:
    """The tokens of one device and micro-batch."""
    shards = math.prod(shape[axis] for axis in sharding.TOKENS) * config.train.grad_accum_steps
    return config.data.batch_size * config.data.seq_len // shards
