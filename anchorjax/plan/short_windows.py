"""What the short windows of LongCE add to a step (anchorjax/training/objectives/longce.py).

They are a forward pass in a loop over groups of windows, whose length depends on the rows: a program's text has one
group. Their number is counted in the run's own rows, and their computation is modelled by FLOPs, compiled or not.
Letters: K, w the context and the stride; W windows of a group.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from anchorjax.config import Config
from anchorjax.data.rows.balance import live_tiles
from anchorjax.models.decoder import kinds_of_layers, layers_of_kinds
from anchorjax.models.flops import causal_pairs, layer_weights
from anchorjax.plan import work
from anchorjax.plan.documents import Documents
from anchorjax.plan.exchanges import Exchange
from anchorjax.plan.hardware import Hardware
from anchorjax.plan.work import Part
from anchorjax.training.objectives import longce

PLACE = "short windows"


def groups(config: Config, shape: Mapping[str, int], documents: Documents) -> tuple[int, int]:
    """Groups of windows for a micro-batch of rows with the mean number of windows, and W; (0, W) without LongCE."""
    train, data = config.train, config.data
    W = longce.windows_of_group(train.longce_context + train.longce_stride, data.seq_len, shape)
    rows = data.batch_size // train.grad_accum_steps
    return math.ceil(rows * documents.short_windows / W), W


def parts(config: Config, shape: Mapping[str, int], hardware: Hardware, documents: Documents) -> list[Part]:
    """The computation of all groups of a step on a device; norms, rotations and activations are left out."""
    number, W = groups(config, shape, documents)
    if not number:
        return []
    model, stride = config.model, config.train.longce_stride
    L, row_shards = config.train.longce_context + stride, shape["data"] * shape["fsdp"]
    windows = number * W * config.train.grad_accum_steps / (row_shards * shape["context"])
    layers = 2 * L * model.num_layers * sum(layer_weights(model))
    products = windows * (layers + 2 * stride * model.d_model * model.vocab_size) / shape["tensor"]
    kinds = tuple(zip(kinds_of_layers(model), layers_of_kinds(model), strict=True))
    tiles = live_tiles(np.zeros(L, np.int32), documents.q_tile, kinds, documents.kv_tile).sum() / model.num_layers
    window = dataclasses.replace(documents, live_tiles=float(tiles), pairs=causal_pairs(L))
    of_head, _ = work.tile_seconds(config, hardware, window, {"forward": 1.0, "backward": 0.0}, L)
    attention = of_head * windows * model.num_layers * model.num_heads / shape["tensor"]
    how = f"{products:.3g} FLOPs as those of the layers, and {attention:.3g} s of attention kernels"
    seconds = products / work.product_speed(config, hardware) + attention
    return [Part("short windows of LongCE", seconds, how, is_in_layers=True)]


def exchanges(
    found: Iterable[Exchange], config: Config, shape: Mapping[str, int], documents: Documents, is_compiled: bool
) -> tuple[Exchange, ...]:
    """All exchanges of a step with those of all groups; a program's text has those of one.

    By formula a group gathers the weights as a forward pass does, and exchanges activations by its tokens.
    """
    (number, W), found = groups(config, shape, documents), tuple(found)
    times = lambda one, factor: dataclasses.replace(one, place=PLACE, received=one.received * factor)  # noqa: E731
    if is_compiled:
        return tuple(times(one, number) if one.place == PLACE else one for one in found if one.place != PLACE or number)
    if not number:
        return found
    L = config.train.longce_context + config.train.longce_stride
    tokens = number * W * L * config.train.grad_accum_steps / (config.data.batch_size * config.data.seq_len)
    forward = [one for one in found if one.place in ("forward layer", "forward attention")]
    is_weight = lambda one: one.place == "forward layer" and "tensor" not in one.axes  # noqa: E731
    return found + tuple(times(one, number if is_weight(one) else tokens) for one in forward)


def assumptions(config: Config, shape: Mapping[str, int], documents: Documents) -> list[str]:
    """A line on what is counted, for runs with LongCE."""
    if config.train.objective != "longce":
        return []
    number, W = groups(config, shape, documents)
    counted = f"LongCE: {documents.short_windows:.1f} short windows a row, {number} groups of {W} for a micro-batch"
    return [f"{counted}; their forward passes are in the seconds, and not in MFU"]
