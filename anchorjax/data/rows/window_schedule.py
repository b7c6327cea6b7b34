"""The window of attention by the step: short at first, the whole row from `data.window_steps` on.

With a window w a token attends to the tokens of its own window up to itself, floor(i / w) w <= j <= i, within its
document; the anchor stays visible. The packer cuts windows into the segment ids (segments.py), so that masks, kernels
and compiled programs do not know of them, and live tiles follow.

From w_s = data.window_start to T = data.seq_len, with x = step / data.window_steps:

    linear         w_s + (T - w_s) x            the paper's: alpha = (T - w_s) / window_steps tokens a step
    sine           w_s + (T - w_s) sin(pi x / 2)
    exponential    w_s (T / w_s)^x

rounded down to a multiple of data.window_multiple, but not below w_s. The paper takes w_s = 32 and alpha = 1/8: 65,280
steps of 100,000 for T = 8192.

Source: SkyLadder (arXiv 2503.15450); the formulas of the last two and the rounding are those of its code.
"""

import math
from collections.abc import Callable

from anchorjax.config import DataConfig

SCHEDULES: dict[str, Callable[[float, int, int], float]] = {
    "linear": lambda x, start, end: start + (end - start) * x,
    "sine": lambda x, start, end: start + (end - start) * math.sin(math.pi / 2 * x),
    "exponential": lambda x, start, end: start * (end / start) ** x,
}
# A window that is a whole number in exact arithmetic is that number, whatever the last bits of sin and pow are.
SLACK = 1e-6


def window(step: int, config: DataConfig) -> int | None:
    """Returns the tokens of a window in step `step`, from 0 on; None for the whole row."""
    start, end = config.window_start, config.seq_len
    if config.window_schedule == "none" or step >= config.window_steps:
        return None
    exact = SCHEDULES[config.window_schedule](step / config.window_steps, start, end)
    multiple = config.window_multiple
    return max(start, int(exact + SLACK) // multiple * multiple)


def describe(config: DataConfig) -> str:
    """Returns one phrase about a schedule that is not `none`."""
    start, steps = window(0, config), config.window_steps
    return f"{config.window_schedule} from {start:,} to {config.seq_len:,} tokens in {steps:,} steps"
