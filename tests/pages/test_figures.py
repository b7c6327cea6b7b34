"""Figures: the numbers that are drawn, text as it is, nothing clipped, and no global state."""

import subprocess
import sys

import numpy as np
import pytest

from anchorjax.pages import figures
from anchorjax.pages.figures import Series, Stacks
from tests import html as pages

ODD = [
    "$x_$ & $y",
    "_hidden",
    "a" * 300,
    "two\nlines",
    "\ud800\x00",
    "",
    r"\frac{a}{b}$",
    "日本語",
    "<b>",
    "\u202eright",
]


def percent(value: float) -> str:
    return f"{value:.1f} %"


def kinds() -> dict:
    """One figure of each kind, with odd names."""
    lines = [Series(name, [4096, 8192], [n + 1, n + 2], [n + 0.5] * 2, [n + 3] * 2) for n, name in enumerate(ODD)]
    image = np.tri(40, dtype=np.uint8)
    colors = {"hidden": "#FFFFFF", "seen": "#0072B2"}
    return {
        "lines": figures.lines(lines, x_label="x", y_label="y", x_ticks=[4096, 8192], log_y=True),
        "plain": figures.lines(lines[:1], x_label="x", y_label="y", name_value=percent, y_range=(0, 5)),
        "bars": figures.bars(ODD, range(len(ODD)), x_label="share (%)", name_value=percent),
        "histogram": figures.histogram(
            [(name, np.arange(1, 90)) for name in ODD], edges=np.arange(1, 99, 7), x_label="x", y_label="y", log_x=True
        ),
        "heat_map": figures.heat_map(
            np.arange(30).reshape(3, 10), rows=ODD[:3], columns=ODD, x_label="x", title=ODD[2], name_value=str
        ),
        "narrow": figures.heat_map(
            np.eye(3), rows=ODD[:3], columns=ODD[:3], x_label="x", title=ODD[2], narrow=True, scale=(0, 100)
        ),
        "pictures": figures.pictures([image] * 3, titles=ODD[:3], kinds=colors, x_label="keys", y_label="queries"),
        "stacks": figures.stacks(
            [Stacks(ODD[2], ODD[:4], {name: range(4) for name in ODD[:7]}, "x", "y", ("of $a", 9))] * 2,
            name_value=percent,
        ),
    }


@pytest.mark.parametrize("kind", list(kinds()))
def test_figures_are_drawn_and_nothing_is_clipped(kind):
    figure = kinds()[kind]
    png = figures.png(figure)
    pixels = pages.decode(png)
    assert not pages.is_blank(pixels) and pixels.shape[1] == (750 if kind == "narrow" else 1125)
    assert png == figures.png(figure) == figures.png(kinds()[kind])
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255, "something runs into the edge"


@pytest.mark.parametrize("name", ODD)
def test_a_label_is_no_formula(name):
    from matplotlib import cbook

    text = figures.label(name)
    assert text and not cbook.is_math_text(text)
    assert len(text.replace(r"\$", "$")) <= 28


def test_a_legend_names_every_line():
    figure = kinds()["lines"]
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == [figures.label(name) for name in ODD]
    parts = [text.get_text() for text in kinds()["stacks"].legends[1].get_texts()]
    assert parts == [figures.label(name, 40) for name in ("of $a", *ODD[6::-1])]


def test_histogram_is_the_share_in_each_bin():
    values = np.array([1, 1, 2, 5, 9, 9, 9])
    figure = figures.histogram([("a", values)], edges=np.array([1, 2, 4, 10]), x_label="x", y_label="y")
    np.testing.assert_allclose(figure.axes[0].patches[0].get_data().values, [200 / 7, 100 / 7, 400 / 7])


def test_parts_of_a_bar_lie_on_each_other():
    panel = Stacks("memory", ["a", "b"], {"weights": [1, 2], "moments": [3, 0.5]}, "plan", "GB", ("capacity", 5))
    axes = figures.stacks([panel], name_value=str).axes[0]
    drawn = [(bar.get_y(), bar.get_height()) for bar in axes.patches]
    assert drawn == [(0, 1), (0, 2), (1, 3), (2, 0.5)]
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("4.0", (0, 4)), ("2.5", (1, 2.5))]
    assert axes.get_ylim()[1] > 5 and list(axes.get_lines()[0].get_ydata()) == [5, 5]
    names = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert sorted(names) == ["capacity", "moments", "weights"]


def test_heat_map_has_its_numbers_in_its_cells():
    values = np.array([[0.0, 1.5], [np.nan, 3.0]])
    figure = figures.heat_map(
        values, rows=("a", "b"), columns=("c", "d"), x_label="x", title="t", name_value=lambda value: f"{value:.1f}"
    )
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert cells == {(0, 0): "0.0", (1, 0): "1.5", (1, 1): "3.0"}


def test_a_scale_is_the_same_for_all_maps():
    axes = {"rows": ("a",), "columns": ("b", "c"), "x_label": "x", "title": "t"}
    for values in ([[0, 1]], [[50, 90]]):
        drawn = figures.heat_map(values, **axes, scale=(0, 100)).axes[0].get_images()[0]
        assert drawn.get_clim() == (0, 100)
    assert figures.heat_map([[50, 90]], **axes).axes[0].get_images()[0].get_clim() == (50, 90)


def test_cells_of_one_colour_have_borders():
    axes = figures.heat_map(
        np.full((3, 2), 100.0), rows=("a", "b", "c"), columns=("4K", "8K"), x_label="x", title="t", scale=(0, 100)
    ).axes[0]
    borders = [[float(tick) for tick in axis.get_ticklocs(minor=True)] for axis in (axes.xaxis, axes.yaxis)]
    assert borders == [[0.5], [0.5, 1.5]]
    drawn = pages.decode(figures.png(axes.figure))
    x, y = (axes.transData.transform(place) for place in ((0.5, 1.25), (0.25, 1.5)))  # on a border, in no text
    inside = axes.transData.transform((0.25, 1.25))
    colors = [drawn[len(drawn) - 1 - int(y), int(x)].tolist() for x, y in (x, y, inside)]
    assert colors[:2] == [[255] * 3] * 2 and colors[2] != [255] * 3


def test_noise_is_no_mountain():
    """Perplexities that differ by 5% fill a sixth of the height."""
    for values, most in (([5.9, 6.2], 1 / 6), ([-6.2, -5.9], 1 / 6), ([2.0, 10.0], 0.95)):
        low, high = figures.lines([Series("a", [1, 2], values)], x_label="x", y_label="y").axes[0].get_ylim()
        assert low < values[0] < values[1] < high
        assert (values[1] - values[0]) / (high - low) == pytest.approx(most, abs=0.05)
        assert values[0] - low == pytest.approx(high - values[1])
    for values in ([3.0, 3.0], [0.0, 0.0], [float("inf")] * 2):
        low, high = figures.lines([Series("a", [1, 2], values)], x_label="x", y_label="y").axes[0].get_ylim()
        assert np.isfinite([low, high]).all() and high - low >= 1 / 3 * abs(values[0] if values[0] < 9 else 0)


def test_steps_are_whole_numbers():
    axes = figures.lines([Series("a", [0, 20], [3, 4])], x_label="step", y_label="y").axes[0]
    assert [tick for tick in axes.get_xticks() if tick != int(tick)] == []


def test_lines_of_one_style_differ_by_their_markers():
    series = [Series("a", [1, 2], [3, 4], style=2, marked=marked) for marked in (False, True)]
    thin, thick = figures.lines(series, x_label="x", y_label="y").axes[0].get_lines()
    assert (thin.get_color(), thin.get_linestyle()) == (thick.get_color(), thick.get_linestyle())
    assert thin.get_color() == figures.COLORS[2]
    assert (thin.get_marker(), thick.get_marker()) == ("None", "D")
    assert thin.get_linewidth() < thick.get_linewidth()


@pytest.mark.parametrize("value", [0.013, 1, 3, 7, 1e6])
def test_a_logarithmic_axis_has_a_tick_whatever_the_values(value):
    figure = figures.lines([Series("a", [1, 2], [value, value])], x_label="x", y_label="y", log_y=True)
    axes = figure.axes[0]
    figures.png(figure)
    low, high = axes.get_ylim()
    assert any(low <= tick <= high for tick in axes.get_yticks())


def test_what_is_infinite_has_no_place_on_a_logarithmic_axis():
    for values in ([3.0, float("inf")], [float("inf")] * 2):
        figure = figures.lines([Series("a", [1, 2], values)], x_label="x", y_label="y", log_y=True)
        assert figures.png(figure).startswith(b"\x89PNG") and np.isfinite(figure.axes[0].get_ylim()).all()


def test_no_global_state():
    code = """
import sys, warnings
warnings.simplefilter("error")
from anchorjax.pages import figures
assert "matplotlib" not in sys.modules
import matplotlib
keys = set(matplotlib.rcParams) - {"backend", "backend_fallback"}  # asking for the backend imports pyplot
before = {key: matplotlib.rcParams[key] for key in keys}
figures.png(figures.bars(["日本語"], [1], x_label="x", name_value=str))
assert "matplotlib.pyplot" not in sys.modules
assert {key: matplotlib.rcParams[key] for key in keys} == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
