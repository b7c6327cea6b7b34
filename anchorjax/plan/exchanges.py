"""What devices exchange in a training step: counted from its compiled program by place, and by formula from its sizes.

Bytes are those that a device receives from the others in a whole step, by the usual algorithms: an all-reduce is a
reduce-scatter and an all-gather. `program` finds how often each collective runs.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from anchorjax import sharding
from anchorjax.config import Config
from anchorjax.plan import program
from anchorjax.plan.program import Collective

SMALL = 1e6
_ATTENTION = r"while/body.*/shard_map/.*(all_gather|all_to_all|ppermute)"
PLACES = {  # by the path of JAX's operations, the first that fits; the rest runs once a micro-batch or step
    "backward attention": r"transpose\(jvp\(\)\)/" + _ATTENTION,
    "backward layer": r"transpose\(jvp\(\)\)/while/body",
    "loss chunk": r"jvp\(\)/shard_map/while/body",
    "forward attention": r"jvp\(\)/" + _ATTENTION,
    "forward layer": r"jvp\(\)/while/body",
}
DTYPES = {"bfloat16": "bf16", "float32": "f32"}


def table(found: Sequence[Collective]) -> list[dict[str, Any]]:
    """Rows of equal collectives of at least 1 MB, with the times that a step runs them and the bytes received."""
    times, received = Counter(), Counter()
    for one, place in zip(found, places(found), strict=True):
        row = place, one.kind, one.dtype, one.result_bytes, one.devices
        times[row] += one.times
        received[row] += one.received
    names = "place", "kind", "dtype", "result_bytes", "devices"
    rows = [dict(zip(names, row, strict=True)) | {"times": times[row], "received": received[row]} for row in times]
    rows = [row for row in rows if row["result_bytes"] >= SMALL and row["devices"] > 1]
    return sorted(rows, key=lambda row: (row["place"], -row["received"]))


def places(found: Sequence[Collective]) -> list[str]:
    """The place of each collective: by its path, or without one of its own where an equal collective of a loop is.

    XLA for GPUs takes iterations out of a loop, and joins their collectives there: the path is then "" or "a/(b:c)".
    """
    in_loops = {one.equal: place_of(one.path) for one in found if not one.is_in_main}

    def place(one: Collective) -> str:
        is_joined = not one.path or ":" in one.path
        return in_loops.get(one.equal, "once") if one.is_in_main and is_joined else place_of(one.path)

    return [place(one) for one in found]


def place_of(path: str) -> str:
    return next((place for place, pattern in PLACES.items() if re.search(pattern, path)), "once")


def formula(config: Config, mesh: Mesh) -> dict[str, dict[str, float]]:
    """Bytes that a device receives in a step, by place and collective, without biases, norms and log-sum-exps.

    Letters: F, C, X, R devices along fsdp, context, tensor and data; W weights of a layer, t tokens of a micro-batch,
    both of one device.
    """
    model, (F, C, X, R) = config.model, (mesh.shape[name] for name in ("fsdp", "context", "tensor", "data"))
    D, V, parts = model.d_model, model.vocab_size, config.train.grad_accum_steps
    heads = model.head_dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    W, t = D * (heads + 3 * model.d_ff) / X, tokens(config, mesh)
    wide = program.BYTES[DTYPES[model.compute_dtype]]
    exchanged = config.mesh.gradient_dtype if config.mesh.gradient_dtype != "auto" else model.compute_dtype
    sums = program.BYTES[DTYPES[exchanged]]
    also = C if config.mesh.shard_weights_over == "fsdp_context" else 1
    others, layers = R * C // also, model.num_layers * parts
    gathered = wide * W * (1 - 1 / (F * also)) * layers
    padded = -(-V // (F * X)) * F * X
    to_words = padded / (F * X) * (1 - 1 / (F * X))
    # The loss takes the output matrix whole along `context`, and its fp32 gradient goes back by parts.
    along_context = parts * padded * D / (F * X) * (1 - 1 / also)
    forward, backward = attention(config, mesh)
    return {
        "forward attention": forward,
        "forward layer": {"all-gather": gathered},
        "backward layer": {
            "all-gather": gathered,
            "reduce-scatter": sums * W * (1 - 1 / (F * also)) * layers,
            "all-reduce": 2 * sums * W / (F * also) * (1 - 1 / others) * layers,
        },
        "backward attention": backward,
        "loss chunk": {
            "all-gather": wide * t * D * (F - 1) * parts,
            "reduce-scatter": 4 * t * D * (F - 1) * parts,
        },
        "once": {
            # Embedded tokens and their gradients; columns for words of the output matrix, and back.
            "all-to-all": parts * wide * D * (2 * t / X * (1 - 1 / (F * also)) + 2 * to_words),
            # In fp32: gradients of the embedding and of the output matrix.
            "all-reduce": parts * 2 * 4 * D * (V / also + (padded if also == 1 else 0)) / (F * X) * (1 - 1 / others),
            "all-gather": wide * along_context,
            "reduce-scatter": 4 * along_context,
        },
    }


def attention(config: Config, mesh: Mesh) -> tuple[dict[str, float], dict[str, float]]:
    """What attention exchanges in a step's forward and backward passes; nothing is said of a ring, nor of chunks.

    The backward pass exchanges the same once more, since layers are recomputed, and gradients of as many bytes.
    """
    model, C, X = config.model, mesh.shape["context"], mesh.shape["tensor"]
    N, K = model.num_heads // X, model.num_kv_heads // X
    size = 2 * model.head_dim * program.BYTES[DTYPES[model.compute_dtype]] * tokens(config, mesh)
    size *= model.num_layers * config.train.grad_accum_steps * (C - 1)
    if config.mesh.context_strategy == "all_gather":
        keys = K * size
        return {"all-gather": keys}, {"all-gather": keys, "all-to-all": keys}
    if config.mesh.context_strategy == "ulysses" and config.mesh.ulysses_head_chunks == 1:
        heads = (N + math.lcm(K, C)) * size / C
        return {"all-to-all": heads}, {"all-to-all": 2 * heads}
    return {}, {}


def tokens(config: Config, mesh: Mesh) -> int:
    """The tokens of one device and micro-batch."""
    shards = math.prod(mesh.shape[axis] for axis in sharding.TOKENS) * config.train.grad_accum_steps
    return config.data.batch_size * config.data.seq_len // shards
