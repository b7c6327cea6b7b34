"""Pictures of scores by length."""

from collections.abc import Sequence

from numpy.typing import ArrayLike

from anchorjax.pages import figures
from anchorjax.pages.figures import name_length


def by_length(
    percent: ArrayLike, rows: Sequence[str], lengths: Sequence[int], title: str, narrow: bool = False
) -> bytes:
    """PNG of percentages [rows, lengths], in the same colours whatever the scores, so that models can be compared."""
    return figures.png(
        figures.heat_map(
            percent,
            rows=rows,
            columns=[name_length(length) for length in lengths],
            x_label="length (tokens)",
            title=title,
            name_value=lambda value: f"{value:.0f}",
            scale=(0, 100),
            narrow=narrow,
        )
    )
