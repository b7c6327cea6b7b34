"""Plots in one style, as matplotlib `Figure`s without pyplot or any other global state; `png` encodes them.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart; lines also differ by marker and dash.
Text is drawn as it is: no "$" starts a formula, and long names are cut. This is the only module that knows matplotlib,
which takes 0.3 seconds to import and is therefore imported when the first figure is made.
"""

import dataclasses
import io
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from anchorjax.pages.page import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MOST = len(COLORS)  # of series in one figure
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")
_WIDTH, _NARROW, _DPI = 7.5, 5.0, 150  # inches; 1125 and 750 pixels
_INK, _GRID = "#222222", "#DDDDDD"
_LONGEST = 28  # characters of a label
_LEAST_SPAN = 1 / 3  # of the largest value, that a linear y axis covers: noise of 5% stays below a sixth of the height
_FEW_COLUMNS = 3  # of a heat map that is drawn narrow, as cells of 2 inches and more look like stripes


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one line, and how far they spread: from `low` to `high` at each, if given.

    Attributes:
      style: lines of the same style have the same colour and dash; None: a style of its own.
      marked: whether each point has a marker. Without, the line is thin: for many points.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: int | None = None
    marked: bool = True


@dataclasses.dataclass(frozen=True)
class Stacks:
    """Upright bars, each of them in parts.

    Attributes:
      labels: one for each bar.
      parts: the values of a part by bar, by the part's name; the first lies at the bottom.
      limit: a height that is drawn as a line, with its name; None: no line.
    """

    title: str
    labels: Sequence[str]
    parts: Mapping[str, Sequence[float]]
    x_label: str
    y_label: str
    limit: tuple[str, float] | None = None


def lines(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
    name_tick: Callable[[float], str] = str,
    log_y: bool = False,
    y_range: tuple[float | None, float | None] = (None, None),
    name_value: Callable[[float], str] | None = None,
) -> "Figure":
    """Draws one line for each series.

    Args:
      x_ticks: makes the x axis logarithmic, with these ticks and no others, named by `name_tick`.
      y_range: lowest and highest y; None: chosen from the values, at least a third of the largest one apart, so that
        noise does not look like a trend. A logarithmic axis chooses its own.
      name_value: gives the text that is written above each point.
    """
    figure, axes = _figure(1, 3.6)
    for number, one in enumerate(series):
        number = number if one.style is None else one.style
        color = COLORS[number % MOST]
        style = {"color": color, "linestyle": _DASHES[number % len(_DASHES)], "linewidth": 1.8 if one.marked else 1.0}
        marker = _MARKERS[number % MOST] if one.marked else None
        axes[0].plot(one.x, one.y, label=label(one.label), marker=marker, markersize=5, **style)
        if one.low is not None:
            axes[0].fill_between(one.x, one.low, one.high, color=color, alpha=0.18, linewidth=0)
        for x, y in zip(one.x, one.y, strict=True) if name_value else ():
            place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 8, "color": _INK}
            axes[0].annotate(label(name_value(y)), (x, y), **place)
    if x_ticks is not None:
        axes[0].set_xscale("log")
        axes[0].set_xticks(x_ticks, [name_tick(x) for x in x_ticks])
        axes[0].set_xticks([], minor=True)
    else:
        axes[0].xaxis.get_major_locator().set_params(integer=True)  # steps
    drawn = np.concatenate([np.ravel(y) for one in series for y in (one.y, one.low, one.high) if y is not None])
    drawn = drawn[np.isfinite(drawn)]
    if log_y:
        axes[0].set_yscale("log")
        _tick_log(axes[0].yaxis)
        if drawn.size:
            y_range = drawn.min() / 1.6, drawn.max() * 1.6  # wide enough for one tick, whatever the values
    elif drawn.size and y_range == (None, None):
        y_range = _wide_enough(float(drawn.min()), float(drawn.max()))
    axes[0].set_ylim(*y_range)
    _label(axes[0], x_label, y_label)
    _legend(axes[0], len(series))
    return figure


def bars(
    labels: Sequence[str], values: Sequence[float], *, x_label: str, name_value: Callable[[float], str]
) -> "Figure":
    """Draws horizontal bars, the first one at the top, each with its value at its end."""
    figure, axes = _figure(1, 0.9 + 0.32 * len(labels))
    drawn = axes[0].barh(range(len(labels)), values, color=COLORS[0], height=0.7)
    axes[0].set_yticks(range(len(labels)), [label(text) for text in labels])
    axes[0].bar_label(drawn, [label(name_value(value)) for value in values], padding=3, color=_INK, fontsize=9)
    axes[0].margins(x=0.12, y=0.02)
    axes[0].invert_yaxis()
    _label(axes[0], x_label, "")
    axes[0].grid(False, axis="y")
    return figure


def stacks(panels: Sequence[Stacks], *, name_value: Callable[[float], str]) -> "Figure":
    """Draws one or two panels of stacked bars. Each bar has its sum above it, and each panel a legend below it."""
    figure, axes = _figure(len(panels), 5.0)
    for one, panel, side in zip(axes, panels, ("left", "right")[: len(panels)], strict=True):
        handles, sums, width = [], np.zeros(len(panel.labels)), 0.7 if len(panel.labels) > 2 else 0.4
        for color, values in zip(itertools.cycle(COLORS), panel.parts.values()):
            handles.append(one.bar(range(len(sums)), values, width, bottom=sums, color=color))
            sums = sums + np.asarray(values, float)
        for place, value in enumerate(sums):
            at = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 7, "color": _INK}
            one.annotate(label(name_value(value)), (place, value), **at)
        names = list(panel.parts)
        if panel.limit:
            names.append(panel.limit[0])
            handles.append(one.axhline(panel.limit[1], color=_INK, linestyle="--", linewidth=1.2))
        is_long = max(map(len, panel.labels)) > 40 // len(sums)
        tilted = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
        one.set_xticks(range(len(sums)), [label(text, 14) for text in panel.labels], **tilted)
        one.set_xlim(-0.6, len(sums) - 0.4)
        one.margins(y=0.1)
        one.set_title(label(panel.title, 66 // len(panels)), fontsize=10, color=_INK, loc="left")
        one.grid(False, axis="x")
        _label(one, panel.x_label, panel.y_label)
        columns = 2 if max(map(len, names)) <= 40 // len(panels) else 1
        names = [label(name, 80 // len(panels) // columns) for name in names]
        place = {"loc": f"outside lower {side}", "ncols": columns, "frameon": False, "fontsize": 8}
        figure.legend(handles, names, reverse=True, **place)  # the last part is on top
    return figure


def histogram(
    values: Sequence[tuple[str, np.ndarray]], *, edges: np.ndarray, x_label: str, y_label: str, log_x: bool = False
) -> "Figure":
    """Draws the percentage of each named array's numbers in each bin, as outlines over the same bins."""
    figure, axes = _figure(1, 3.6)
    for number, (name, numbers) in enumerate(values):
        percent = 100 * np.histogram(numbers, edges)[0] / max(1, len(numbers))
        style = {"color": COLORS[number % MOST], "linestyle": _DASHES[number % len(_DASHES)], "linewidth": 1.8}
        axes[0].stairs(percent, edges, label=label(name), **style)
        if len(values) <= 3:  # more would hide each other
            axes[0].stairs(percent, edges, color=style["color"], alpha=0.12, fill=True)
    if log_x:
        axes[0].set_xscale("log")
        _tick_log(axes[0].xaxis)
    _label(axes[0], x_label, y_label)
    _legend(axes[0], len(values))
    return figure


def heat_map(
    values_RC: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    x_label: str,
    title: str,
    name_value: Callable[[float], str] = str,
    scale: tuple[float, float] | None = None,
    narrow: bool = False,
) -> "Figure":
    """Draws a coloured cell for each value, with the value in it. Cells have white borders; NaNs stay white.

    Args:
      scale: values of the first and the last colour, so that maps can be compared; None: the lowest and the highest.
      narrow: draws a smaller figure, for two side by side. Maps of few columns are always narrow.
    """
    import matplotlib

    narrow = narrow or len(columns) <= _FEW_COLUMNS
    figure, axes = _figure(1, 1.25 + 0.42 * len(rows), _NARROW if narrow else _WIDTH)
    values_RC = np.asarray(values_RC, float)
    known = values_RC[np.isfinite(values_RC)]
    low, high = scale or ((known.min(), known.max()) if known.size else (0.0, 1.0))
    colors = matplotlib.colormaps["cividis"]
    axes[0].imshow(values_RC, colors, aspect="auto", vmin=low, vmax=high if high > low else low + 1)
    for (row, column), value in np.ndenumerate(values_RC):
        if np.isfinite(value):
            bright = value - low > 0.55 * (high - low) and high > low
            color = "black" if bright else "white"
            axes[0].text(column, row, label(name_value(value)), ha="center", va="center", color=color, fontsize=9)
    longest = max(3, (36 if narrow else 64) // len(columns))
    axes[0].set_xticks(range(len(columns)), [label(text, longest) for text in columns])
    axes[0].set_yticks(range(len(rows)), [label(text, 20 if narrow else _LONGEST) for text in rows])
    _label(axes[0], x_label, "")
    axes[0].set_title(label(title, 30 if narrow else 54), fontsize=10, color=_INK, loc="left")
    axes[0].grid(False)
    axes[0].tick_params(length=0)
    _border_cells(axes[0], values_RC.shape)
    return figure


def pictures(
    images: Sequence[np.ndarray], *, titles: Sequence[str], kinds: dict[str, str], x_label: str, y_label: str
) -> "Figure":
    """Square arrays of small integers side by side: value n is drawn in the n-th colour of `kinds`, name -> colour."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    figure, axes = _figure(len(images), 3.3)
    for one, image, title in zip(axes, images, titles, strict=True):
        colors = ListedColormap(list(kinds.values()))
        one.imshow(image, colors, vmin=-0.5, vmax=len(kinds) - 0.5, interpolation="nearest")
        one.set_title(label(title, 84 // len(images)), fontsize=9, color=_INK)
        one.set_xticks([])
        one.set_yticks([])
        one.grid(False)
        for spine in one.spines.values():
            spine.set_visible(True)
            spine.set_color(_GRID)
        _label(one, x_label, "")
    _label(axes[0], x_label, y_label)
    handles = [Patch(facecolor=color, edgecolor=_INK, linewidth=0.5, label=name) for name, color in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=9)
    return figure


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks becomes boxes
        figure.draw_without_rendering()  # room for labels is made from where they were in the drawing before
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def label(text: str, longest: int = _LONGEST) -> str:
    """`text` on one line of at most `longest` characters, as itself: "$" begins no formula."""
    text = " ".join(printable(text).split()) or "(no name)"
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")


def name_length(length: float) -> str:
    """4096 -> "4K", 2^20 -> "1M", 5000 -> "5,000"."""
    for unit, letter in ((2**20, "M"), (2**10, "K")):
        if length >= unit and length % unit == 0:
            return f"{length // unit:,.0f}{letter}"
    return f"{length:,.0f}"


def _figure(columns: int, height: float, width: float = _WIDTH) -> "tuple[Figure, list[Axes]]":
    """A figure of `columns` plots side by side, with its size in inches. It belongs to no window and no manager."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in axes:
        one.set_axisbelow(True)
        one.grid(True, color=_GRID, linewidth=0.7)
        one.tick_params(labelsize=9, colors=_INK)
        for side, spine in one.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_INK)
    return figure, axes


def _wide_enough(low: float, high: float) -> tuple[float, float]:
    """Returns the ends of a linear axis around values from `low` to `high`."""
    span, least = high - low, _LEAST_SPAN * max(abs(low), abs(high))
    margin = max(0.05 * span, (least - span) / 2) or 1.0
    return low - margin, high + margin


def _border_cells(axes: "Axes", shape: tuple[int, int]) -> None:
    """Separates cells of the same colour by white lines."""
    for axis, count in zip((axes.yaxis, axes.xaxis), shape, strict=True):
        axis.set_ticks(np.arange(1, count) - 0.5, minor=True)
    axes.set_axisbelow(False)
    axes.grid(True, which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)


def _tick_log(axis: "Axis") -> None:
    """Ticks at 1, 2, 5, 10, ... in plain numbers, where matplotlib writes powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,g}" if value < 1 else f"{value:,.0f}")
    axis.set_minor_locator(NullLocator())


def _label(axes: "Axes", x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=10, color=_INK)
    axes.set_ylabel(y_label, fontsize=10, color=_INK)


def _legend(axes: "Axes", count: int) -> None:
    if count > 1:
        handles = axes.get_lines() or [patch for patch in axes.patches if not patch.get_fill()]
        axes.legend(handles, [handle.get_label() for handle in handles], frameon=False, fontsize=9)
