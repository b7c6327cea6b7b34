"""SmolLM2-135M with a window schedule (SkyLadder, arXiv 2503.15450) under the anchor: short context first, on a laptop.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir checkpoints/SmolLM2-135M-Instruct
    anchorjax train --config=methods/window_schedule --workdir=runs/window_schedule

Hardware: two cores and 8 GB, about 15 minutes, as smollm2_135m_anchor. The paper trains from random weights; starting
from a checkpoint that has seen long rows is this project's recipe, not the paper's.
"""

from anchorjax.config import recipe

CLIMB = 0.65  # of the steps until rows are whole; the paper's 1/8 token a step takes 65,280 of 100,000 for 8192 tokens
WINDOWS = 16  # of a whole row, at most this many sizes: windows of whole tiles


def method(config):
    config.data.window_schedule = "linear"
    config.data.window_start = min(32, config.data.seq_len)
    config.data.window_steps = max(1, int(CLIMB * config.train.steps))
    config.data.window_multiple = max(1, config.data.seq_len // WINDOWS)
    return config


def get_config():
    return method(recipe("smollm2_135m_anchor"))
