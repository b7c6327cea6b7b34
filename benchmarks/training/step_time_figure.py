"""Draws the README's picture from the recorded step times.

    python -m benchmarks.training.step_time_figure

Reads docs/figures/step_time/step_time.json (measured by step_time.py; the file names the command and the machine) and
writes step_time.png beside it.
"""

import json
from pathlib import Path

from anchorjax.pages import figures

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "figures" / "step_time"


def draw(record: dict) -> bytes:
    """A PNG file with one line for each mask: seconds of a training step by sequence length."""
    lengths = [int(length) for length in record["rows"]]
    series = [
        figures.Series(f"{mask} mask", lengths, [row[f"{mask}_s"] for row in record["rows"].values()])
        for mask in ("full", "anchor")
    ]
    figure = figures.lines(
        series,
        x_label="sequence length, in documents of about 1024 tokens (measured, two CPU cores)",
        y_label="seconds per training step",
        x_ticks=lengths,
        name_tick=figures.name_length,
        y_range=(0, 12.5),
    )
    return figures.png(figure)


if __name__ == "__main__":
    (FOLDER / "step_time.png").write_bytes(draw(json.loads((FOLDER / "step_time.json").read_text())))
