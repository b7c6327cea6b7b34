"""What the devices of a step compute and copy, part by part: products, memory-bound work, attention, host copies.

Letters: D, F, V, N, K, H, L as in anchorjax/types.py; t tokens of a device in a step, P weights of a device at rest.
"""

import dataclasses
from collections.abc import Mapping

from anchorjax.config import Config
from anchorjax.models.flops import layer_weights
from anchorjax.plan import exchanges, tiles
from anchorjax.plan.documents import Documents
from anchorjax.plan.exchanges import DTYPES
from anchorjax.plan.hardware import Hardware
from anchorjax.plan.program import BYTES
from anchorjax.plan.schedule import Cycles

# Share of the bf16 peak that the products of a layer reach. TPUs: what XLA's own estimates of Llama-3-8B's layer come
# to (v5e, v5p), or those of its feed-forward layer alone (v4, v6e, tpu7x), with what is fused into the products; a
# compiled program's estimates take their place. GPUs: assumed.
PRODUCT_SHARE = {"v4": 0.85, "v5e": 0.81, "v5p": 0.77, "v6e": 0.55, "tpu7x": 0.65}
PRODUCT_SHARE |= {"a100": 0.7, "h100": 0.7, "b200": 0.7}
# A product of two fp32 arrays takes so many times a bf16 one: six passes on TPUs, IEEE fp32 on GPUs (A100: 312 / 19.5).
FP32_PRODUCT = {True: 6, False: 16}
HBM_SHARE = 0.8  # of the memory's bandwidth, assumed
ADAM_READS = 2  # of the moments and the weight in an update: each is read once and written once


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a step.

    Attributes:
      name: what it is.
      seconds: that it adds to the step.
      how: one line on where they come from.
      hidden: seconds that it runs beside other parts.
      is_in_layers: whether it is computation of the layers, beside which others may run.
      source: "compiled", if the seconds are an estimate of the compiler's, or "modelled".
    """

    name: str
    seconds: float
    how: str
    hidden: float = 0.0
    is_in_layers: bool = False
    source: str = "modelled"


def tokens(config: Config, shape: Mapping[str, int]) -> float:
    """Tokens of a device in a step."""
    return exchanges.tokens(config, shape) * config.train.grad_accum_steps


def weights_at_rest(config: Config, shape: Mapping[str, int]) -> float:
    """Matrix weights that rest on a device."""
    model, also = config.model, shape["context"] if config.mesh.shard_weights_over == "fsdp_context" else 1
    words = model.vocab_size * model.d_model * (1 if model.tie_embeddings else 2)
    return (model.num_layers * sum(layer_weights(model)) + words) / (shape["fsdp"] * shape["tensor"] * also)


def moment_bytes(config: Config) -> int:
    """Bytes of one moment of one weight."""
    dtype = config.optimizer.moments_dtype
    return BYTES[DTYPES[config.model.param_dtype if dtype == "weights" else dtype]]


def product_flops(config: Config, shape: Mapping[str, int]) -> tuple[float, float]:
    """FLOPs of a device in the products of the layers, recomputation among them, and of the loss.

    A product and its two gradients take 2, 2 and 2 FLOPs per weight and token; frozen weights have no gradient.
    Without remat=none all products of a layer but the last are computed again. The fp32 gradient of the logits
    multiplies in two bf16 parts.
    """
    model, X = config.model, shape["tensor"]
    attention, ffn = layer_weights(model)
    passes = 4 if config.lora.rank else 6
    again = 0 if model.remat == "none" else 2 * (attention + ffn * 2 / 3)
    layers = model.num_layers * (passes * (attention + ffn) + again) / X
    loss = model.d_model * model.vocab_size / X * (2 + 4 * (1 if config.lora.rank else 2))
    t = tokens(config, shape)
    return t * layers, t * loss


def product_speed(config: Config, hardware: Hardware) -> float:
    """FLOP/s that the products of a layer reach on a device."""
    slower = FP32_PRODUCT[hardware.is_tpu] if config.model.compute_dtype == "float32" else 1
    return hardware.peak_flops * PRODUCT_SHARE[hardware.target] / slower


def computation(
    config: Config, shape: Mapping[str, int], hardware: Hardware, estimate: Cycles | None = None
) -> list[Part]:
    """Everything but attention's kernels: by XLA's estimate where there is one, else by FLOPs and bytes."""
    if estimate is not None:
        clock = tiles.clock(hardware)
        how = f"XLA's estimate of cycles, {clock / 1e9:.2f} GHz"
        return [
            Part("layers", estimate.layers / clock, how, is_in_layers=True, source="compiled"),
            Part("loss, embedding and update", estimate.rest / clock, how, source="compiled"),
        ]
    speed = product_speed(config, hardware)
    of_layers, of_loss = product_flops(config, shape)
    how = "{:.3g} FLOPs at " + f"{PRODUCT_SHARE[hardware.target]:.0%} of the peak"
    bandwidth = hardware.hbm_bytes_per_s * HBM_SHARE
    between, update, words = memory_bytes(config, shape)
    moved = "{:.1f} GB of memory traffic at " + f"{HBM_SHARE:.0%} of the bandwidth"
    return [
        Part("products of the layers", of_layers / speed, how.format(of_layers), is_in_layers=True),
        Part("norms, rotations, activations", between / bandwidth, moved.format(between / 1e9), is_in_layers=True),
        Part("loss", of_loss / speed, how.format(of_loss)),
        Part("embedding", words / bandwidth, moved.format(words / 1e9)),
        Part("update of the weights", update / bandwidth, moved.format(update / 1e9)),
    ]


def memory_bytes(config: Config, shape: Mapping[str, int]) -> tuple[float, float, float]:
    """Bytes that a device's memory moves between products of the layers, in the update, and for the embedding.

    Between products: a norm reads and writes a row, a residual reads two rows and writes one, a rotation reads and
    writes the heads, the gate reads two hidden rows and writes one; the backward pass does twice that, and once more
    what is recomputed. Kernels want heads in front of tokens: two arrays of queries and two of keys are copied forward,
    and twice as many backward, those of keys for all tokens that a device attends to. In the update: weights and
    moments are read and written, gradients read twice (their norm is one pass); with accumulation each micro-batch
    reads and writes the fp32 sum and reads its gradient.
    """
    model, X, t = config.model, shape["tensor"], tokens(config, shape)
    wide = BYTES[DTYPES[model.compute_dtype]]
    heads = (model.num_heads + model.num_kv_heads) * model.head_dim / X
    row = (2 * 2 + 2 * 3) * model.d_model + 2 * heads + 3 * model.d_ff / X
    passes = 4 if model.remat != "none" else 3
    keys = shape["context"] if config.mesh.context_strategy == "all_gather" else 1
    copied = 2 * 6 * model.head_dim * (model.num_heads + model.num_kv_heads * keys) / X
    between = wide * (row * passes + copied) * t * model.num_layers
    if config.mesh.context_strategy == "ring":
        # Each step of a ring merges an output into an fp32 one, and adds a gradient of the queries to an fp32 one.
        merged = ((4 + wide + 4) + (4 + 4 + 4)) * model.num_heads * model.head_dim / X
        between += merged * (shape["context"] - 1) * t * model.num_layers
    rest = weights_at_rest(config, shape)
    weight, moment = BYTES[DTYPES[model.param_dtype]], moment_bytes(config)
    update = 0.0 if config.lora.rank else rest * (ADAM_READS * (weight + 2 * moment) + 2 * weight)
    parts = config.train.grad_accum_steps
    update += 0 if parts == 1 or config.lora.rank else rest * parts * (2 * 4 + weight)
    words = t * model.d_model * (wide + 4) * 2
    return between, update, words


def attention(config: Config, shape: Mapping[str, int], hardware: Hardware, documents: Documents) -> list[Part]:
    """Kernels over the live tiles, and what devices wait for one another."""
    seconds, how = tile_seconds(config, hardware, documents)
    model = config.model
    shards = shape["data"] * shape["fsdp"] * shape["context"] * shape["tensor"]
    rows = config.data.batch_size * model.num_layers * model.num_heads / shards
    busy = seconds * rows
    balance = 1.0 if config.mesh.context_strategy == "ulysses" else documents.imbalance
    waits = balance * documents.batch_wait - 1
    return [
        Part("attention kernels", busy, how, is_in_layers=True),
        Part(
            "waiting for the busiest device",
            busy * waits,
            f"busiest shard {balance:.2f} times the mean, busiest rows {documents.batch_wait:.2f} times",
        ),
    ]


def passes_of(config: Config) -> dict[str, float]:
    """How often a step takes each of the kernel's passes: remat=full alone computes attention again."""
    return {"forward": 2.0 if config.model.remat == "full" else 1.0, "backward": 1.0}


def tile_seconds(
    config: Config,
    hardware: Hardware,
    documents: Documents,
    passes: Mapping[str, float] | None = None,
    seq_len: int = 0,
) -> tuple[float, str]:
    """Seconds of one head of one row on one device, and how they come about.

    Args:
      passes: how often each is taken; None: as in a step.
      seq_len: of other rows than the configuration's.
    """
    model, passes, count = config.model, passes or passes_of(config), documents.live_tiles
    seq_len = seq_len or config.data.seq_len
    q_tile, kv_tile = documents.q_tile, documents.kv_tile
    kernel = config.attention.implementation
    if kernel == "pallas_tpu" and hardware.is_tpu:
        cost, scale = tiles.cost(hardware.target, q_tile, kv_tile)
        masked = count * tiles.masked_share(documents.pairs, count, q_tile, kv_tile)
        lines = {"forward": seq_len / q_tile, "backward": seq_len / kv_tile}
        cycles = tiles.cycles(cost, passes, count - masked, masked, lines) * scale * tiles.widths(model.head_dim)
        speed = tiles.clock(hardware) * tiles.CORES[hardware.target]
        return cycles / speed, f"{count:.0f} live tiles of {q_tile} x {kv_tile} a row and head, {cycles:.3g} cycles"
    share = tiles.gpu_share(hardware.target, kernel)
    total = count * tiles.flops(q_tile, kv_tile, model.head_dim, passes)
    how = f"{count:.0f} live tiles of {q_tile} x {kv_tile} a row and head at {share:.0%} of the peak (assumed)"
    return total / (hardware.peak_flops * share), how


def host_copies(config: Config, shape: Mapping[str, int], hardware: Hardware, beside: float) -> list[Part]:
    """Copies to and from the host's memory: of activations beside the layers, of moments in the update."""
    model, parts = config.model, []
    wide = BYTES[DTYPES[model.compute_dtype]]
    if model.remat == "offload":
        row = model.d_model * wide + model.num_heads / shape["tensor"] * (model.head_dim * wide + 4)
        moved = 2 * row * tokens(config, shape) * model.num_layers
        total = moved / hardware.host_bytes_per_s
        hidden = min(total, beside)
        how = f"{moved / 1e9:.1f} GB to the host and back at {hardware.host_bytes_per_s / 1e9:.0f} GB/s, beside layers"
        parts.append(Part("offloaded activations", total - hidden, how, hidden))
    if config.optimizer.moments_on == "host" and not config.lora.rank:
        moved = 2 * 2 * moment_bytes(config) * weights_at_rest(config, shape)
        how = f"{moved / 1e9:.1f} GB from the host and back at {hardware.host_bytes_per_s / 1e9:.0f} GB/s"
        parts.append(Part("moments of the host", moved / hardware.host_bytes_per_s, how))
    return parts


def assumptions(config: Config, hardware: Hardware, documents: Documents, estimate: Cycles | None = None) -> list[str]:
    """Lines: every number of this file that is assumed."""
    lines, target = [], hardware.target
    if estimate is None:
        products = f"matrix products reach {PRODUCT_SHARE[target]:.0%} of the peak"
        if config.model.compute_dtype == "float32":
            products += f", and take {FP32_PRODUCT[hardware.is_tpu]} times as long in float32"
        lines += [
            products,
            f"memory-bound work reaches {HBM_SHARE:.0%} of the memory's bandwidth, and fuses only with its neighbours",
        ]
    else:
        lines.append(f"a core runs at {tiles.clock(hardware) / 1e9:.2f} GHz, its peak over the FLOPs of a cycle")
    lines += tiles.assumptions(hardware, config.attention.implementation, documents.q_tile, documents.kv_tile)
    lines.append(f"documents: {documents.source}")
    lines.append("steps only: no evaluation, no save, no compilation, no wait for data")
    return lines
