"""Modelled time of a training step: what each part of it takes on the hardware, and what runs beside what.

    made = time.model(config, mesh, hardware, documents, hlo)
    made.seconds, made.mfu, made.parts, made.assumptions

Nothing here is measured. Two rules say how parts add up:

    computation   one part after the other: products, kernels, work that memory binds
    exchanges     those of weights and their gradients run beside the layers' computation where the program is compiled
                  so, and add what they take beyond it; all others, and attention's, are waited for

`low` has all exchanges and copies beside computation, and `high` has none.
"""

import dataclasses
import math
from collections.abc import Iterable

from jax.sharding import Mesh

from anchorjax.config import Config
from anchorjax.models import flops
from anchorjax.plan import exchanges, schedule, short_windows, work
from anchorjax.plan.documents import Documents
from anchorjax.plan.exchanges import Exchange
from anchorjax.plan.hardware import Hardware
from anchorjax.plan.links import Links
from anchorjax.plan.work import Part

# Places whose exchanges have computation to run beside.
HIDDEN = ("forward layer", "backward layer", short_windows.PLACE)


@dataclasses.dataclass(frozen=True)
class StepTime:
    """What a step takes.

    Attributes:
      parts: their `seconds` sum to `seconds`.
      seconds: the estimate.
      low, high: with everything, and with nothing, beside computation.
      mfu: model FLOPs of the tokens and visible pairs, over what the devices could do in `seconds`. Neither padding nor
        recomputation counts, nor the short windows of LongCE.
      mfu_causal: the same with each row as one causal document, as most trainers print it.
      exchanged: the exchanges whose time it includes.
      assumptions: lines that name every number that is neither compiled, counted nor a maker's.
    """

    parts: tuple[Part, ...]
    seconds: float
    low: float
    high: float
    mfu: float
    mfu_causal: float
    exchanged: tuple[Exchange, ...]
    assumptions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run takes: hours, chips times hours, and their price, None if no price is given."""

    hours: float
    chip_hours: float
    price: float | None


def cost(step_seconds: float, steps: int, devices: int, hardware: Hardware, price: float | None = None) -> Cost:
    """The cost of a run's steps, without evaluations, saves and restarts.

    Args:
      price: of one chip and hour, in any currency.
    """
    hours = step_seconds * steps / 3600
    chip_hours = hours * devices / hardware.devices_per_chip
    return Cost(hours, chip_hours, None if price is None else price * chip_hours)


def model(config: Config, mesh: Mesh, hardware: Hardware, documents: Documents, hlo: str = "") -> StepTime:
    """Models a step.

    Args:
      config: as `step.prepare` returns it, with attention's implementation and tiles.
      mesh: of compile-only devices.
      hardware: of one of them.
      documents: of the run's rows.
      hlo: the compiled step's text, for its exchanges and XLA's own estimate of cycles; "": both by formula.

    Raises:
      ValueError: a text whose collectives cannot be read.
    """
    shape = dict(mesh.shape)
    exchanged = exchanges_of(config, mesh, hlo)
    exchanged = short_windows.exchanges(exchanged, config, shape, documents, bool(hlo))
    estimate = schedule.cycles(hlo) if hlo and hardware.is_tpu else None
    computed = [
        *work.computation(config, shape, hardware, estimate),
        *short_windows.parts(config, shape, hardware, documents),
    ]
    attention = work.attention(config, shape, hardware, documents)
    beside = sum(part.seconds for part in (*computed, *attention) if part.is_in_layers)
    moved = exchange_parts(exchanged, Links(mesh, hardware), beside)
    copied = work.host_copies(config, shape, hardware, beside)
    parts = (*computed, *attention, *moved, *copied)
    seconds = sum(part.seconds for part in parts)
    busy = sum(part.seconds for part in (*computed, *attention))
    waits = [sum(part.seconds + part.hidden for part in others) for others in (moved, copied)]
    rows, peak = config.data.batch_size, hardware.peak_flops * math.prod(shape.values())
    tokens, frozen = rows * config.data.seq_len * documents.fill, config.lora.rank > 0
    mfu, mfu_causal = (
        flops.train_flops(config.model, tokens, rows * pairs, frozen) / (seconds * peak)
        for pairs in (documents.pairs, flops.causal_pairs(config.data.seq_len))
    )
    return StepTime(
        parts,
        seconds,
        max(busy, *waits),
        busy + sum(waits),
        mfu,
        mfu_causal,
        exchanged,
        (
            *work.assumptions(config, hardware, documents, estimate),
            *short_windows.assumptions(config, shape, documents),
            *_of_exchanges(config, hlo),
        ),
    )


def exchanges_of(config: Config, mesh: Mesh, hlo: str) -> tuple[Exchange, ...]:
    """The step's exchanges: counted in the program, or by formula. A ring's are by formula, as its loop counts once."""
    formula = exchanges.formula(config, mesh.shape)
    if not hlo:
        return formula
    found = exchanges.of(hlo, mesh)
    if config.mesh.context_strategy != "ring":
        return found
    is_ring = lambda one: one.kind == "collective-permute" and one.place.endswith("attention")  # noqa: E731
    return tuple(one for one in found if not is_ring(one)) + tuple(one for one in formula if is_ring(one))


def exchange_parts(exchanged: Iterable[Exchange], links: Links, beside: float) -> list[Part]:
    """One part for each place and axes; those of layers run beside `beside` seconds of computation."""
    seconds, received = {}, {}
    for one in exchanged:
        is_hidden = one.is_overlapped and one.place in HIDDEN and "tensor" not in one.axes
        key = one.place, one.axes, is_hidden
        seconds[key] = seconds.get(key, 0.0) + links.group(one.axes).seconds(one.kind, one.received)
        received[key] = received.get(key, 0.0) + one.received
    parts, left = [], beside
    for (place, axes, is_hidden), total in sorted(seconds.items()):
        hidden = min(total, left) if is_hidden else 0.0
        left -= hidden
        how = f"{received[place, axes, is_hidden] / 1e9:.2f} GB over {links.group(axes).how}"
        if is_hidden:
            how += ", beside the layers' computation"
        parts.append(Part(f"{place}: along {'+'.join(axes)}", total - hidden, how, hidden))
    return parts


def _of_exchanges(config: Config, hlo: str) -> list[str]:
    lines = ["links carry their nominal bandwidth; latency and other axes' bytes on the same links are left out"]
    if not hlo:
        lines.append("exchanges by formula; weights and their gradients are gathered and summed beside the layers")
    if config.mesh.context_strategy == "ring":
        lines.append("a ring sends all keys and values to all devices, the most that documents can ask for")
    return lines
