"""Numbers of runs into figures."""

from collections.abc import Mapping, Sequence

from anchorjax.evaluation import heat_maps
from anchorjax.pages import figures
from anchorjax.pages.figures import Series, name_length
from anchorjax.pages.runs.reading import Run
from anchorjax.pages.runs.values import NeedleGrid, curve, ruler_lengths, upper_end


def losses(runs: Sequence[Run]) -> "figures.Figure | None":
    """Thin lines of training, and points of held-out text; a run keeps its colour."""
    series = []
    for number, run in enumerate(runs):
        name = f"{run.name}: " if len(runs) > 1 else ""
        for what, lines, marked in (("training", run.train, False), ("held-out", run.held_out, True)):
            steps, values = curve(lines, "loss")
            # A run alone has a colour for each; of several, each has one.
            style = number if len(runs) > 1 else int(marked)
            series.append(Series(f"{name}{what}", steps, values, style=style, marked=marked))
    return _lines(series, "loss (nats per target)")


def training(runs: Sequence[Run], key: str, y_label: str) -> "figures.Figure | None":
    """A value of each logged step."""
    series = [Series(run.name, *curve(run.train, key), style=number, marked=False) for number, run in enumerate(runs)]
    return _lines(series, y_label)


def _lines(series: Sequence[Series], y_label: str) -> "figures.Figure | None":
    series = [one for one in series if one.x]
    return figures.lines(series, x_label="step", y_label=y_label) if series else None


def by_place(found: Mapping[int, tuple[str, Mapping[str, float]]], x_label: str) -> "figures.Figure":
    """Perplexity by bucket of places, each drawn at its upper end.

    Args:
      found: by a run's place on the page, its name and its perplexities.
    """
    ends = sorted({upper_end(bucket) for _, row in found.values() for bucket in row})
    series = [
        Series(name, [upper_end(bucket) for bucket in row], list(row.values()), style=number)
        for number, (name, row) in found.items()
    ]
    return figures.lines(series, x_label=x_label, y_label="perplexity", x_ticks=ends, name_tick=name_length)


def ruler(scores: Mapping[str, Mapping[int, float]], name: str) -> bytes:
    """`name` is a run's on a page of several, and empty for one alone."""
    lengths = ruler_lengths(scores)
    percent = [[row.get(length, float("nan")) for length in lengths] for row in scores.values()]
    return heat_maps.by_length(percent, list(scores), lengths, name or "RULER, percent", narrow=bool(name))


def needles(grid: NeedleGrid, name: str) -> bytes:
    """`name` as above."""
    rows = [f"{depth:g}%" for depth in grid.depths]
    return heat_maps.by_length(
        grid.percent_LE.T, rows, grid.lengths, name or "Needles found, percent", narrow=bool(name)
    )
