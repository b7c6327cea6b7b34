"""The data and labels of matplotlib axes, as a test compares them with results."""

import numpy as np


def labels(axis) -> list[str]:
    return [tick.get_text() for tick in axis.get_ticklabels()]


def heat_map(axes) -> tuple[np.ndarray, list[str], list[str]]:
    """Values [rows, columns] of the image, and the labels of rows and columns."""
    (image,) = axes.get_images()
    return np.asarray(image.get_array()), labels(axes.yaxis), labels(axes.xaxis)


def lines(axes) -> dict[str, tuple[list[float], list[float]]]:
    """x and y of each line, by its label."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def bars(axes) -> dict[str, float]:
    """Lengths of the bars by their labels."""
    return dict(zip(labels(axes.yaxis), (patch.get_width() for patch in axes.patches), strict=True))
