"""Pictures of how far rounding moves attention: PNGs by file name, from the result of `rope_precision.summary`."""

from collections.abc import Iterator, Sequence
from typing import Any

from anchorjax.experiments.rope_precision.rope_precision import LAYOUTS, Plan, column_edges
from anchorjax.pages import figures
from anchorjax.pages.figures import MOST, Series

ATTENTION = "deviation of attention (Eq. 4)"
LOGIT = "deviation of the first key's logits (Eq. 5)"


def pictures(plan: Plan, result: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """(name of the file, PNG); a picture of each experiment that was made."""
    if "shifts" in result:
        yield "shifts.png", _by_shift(plan, result["shifts"])
    if "lengths" in result:
        of = {precision: labels["0"] for precision, labels in result["lengths"].items()}
        yield "lengths.png", _by_length(plan, {name: one["attention"]["all"] for name, one in of.items()}, ATTENTION)
        yield "logits.png", _by_length(plan, {name: one["logit"] for name, one in of.items()}, LOGIT)
        yield "keys.png", _by_key(plan, {name: one["columns"] for name, one in of.items()})
    layouts = {layout: result[layout] for layout in LAYOUTS if layout in result}
    for precision in plan.precisions if layouts else ():
        of = {layout: one[precision]["0"]["attention"]["all"] for layout, one in layouts.items()}
        yield f"layouts-{precision}.png", _by_length(plan, of, f"{ATTENTION}, {precision}")
    yield "tables.png", _tables(result["tables"])


def _by_shift(plan: Plan, result: dict[str, Any]) -> bytes:
    """Against the distance from the reference, on which D1 = D2 has no place."""
    shifts = sorted((shift for shift in plan.shifts if shift != plan.reference), key=lambda x: abs(x - plan.reference))
    distances = [abs(shift - plan.reference) for shift in shifts]
    series = []
    for precision, labels in result.items():
        y, low, high = (
            [labels[str(shift)][name][0] if name else labels[str(shift)]["attention"]["all"][0] for shift in shifts]
            for name in ("", "low", "high")
        )
        series.append(Series(precision, distances, y, low, high))
    ticks = [10**i for i in range(len(str(max(distances, default=1))))]
    return _lines(series, x_label=f"distance of the shift from {plan.reference}", y_label=ATTENTION, x_ticks=ticks)


def _by_length(plan: Plan, values: dict[str, Sequence[float]], y_label: str) -> bytes:
    series = [Series(name, plan.lengths, y) for name, y in values.items()]
    return _lines(series, x_label="length (tokens)", y_label=y_label, x_ticks=plan.lengths)


def _by_key(plan: Plan, values: dict[str, Sequence[float]]) -> bytes:
    edges = column_edges(plan.lengths[-1])
    places = [edge + 1 for edge in edges[:-1]]
    ticks = [place for place in places if (place - 1) & (place - 2) == 0]
    return _lines(
        [Series(name, places, y) for name, y in values.items()],
        x_label="key, the first being 1; from 9 on the mean up to the next mark",
        y_label="deviation of one key (Eq. 4)",
        x_ticks=ticks,
    )


def _tables(result: dict[str, Any]) -> bytes:
    series = [Series(name, result["positions"], y) for name, y in result["errors"].items()]
    return _lines(series, x_label="position", y_label="largest error of a cosine", x_ticks=result["positions"])


def _lines(series: Sequence[Series], **labels: Any) -> bytes:
    """With both axes logarithmic; what is exactly zero has no place and is left out."""
    drawn = []
    for one in series[:MOST]:
        kept = [i for i, y in enumerate(one.y) if (y if one.low is None else one.low[i]) > 0]
        x, y, low, high = (values and [values[i] for i in kept] for values in (one.x, one.y, one.low, one.high))
        if kept:
            drawn.append(Series(one.label, x, y, low, high))
    return figures.png(figures.lines(drawn, log_y=bool(drawn), name_tick=_short, **labels))


def _short(number: float) -> str:
    """65536 -> 64K, and 1000 as it is."""
    for size, letter in ((2**20, "M"), (2**10, "K")):
        if number >= size and number % size == 0:
            return f"{number // size}{letter}"
    return f"{number:,}"
