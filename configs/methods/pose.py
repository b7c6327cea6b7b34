"""SmolLM2-135M for 16K positions on rows of 2048 tokens: PoSE (arXiv 2309.10400) under the anchor, on a laptop.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir checkpoints/SmolLM2-135M-Instruct
    anchorjax train --config=methods/pose --workdir=runs/pose

Hardware: two cores and 8 GB, about 15 minutes, as smollm2_135m_anchor. Positions skip inside documents, so that rows of
2048 tokens hold positions up to 16383. Rows for held-out losses do not skip.
"""

from anchorjax.config import recipe

STRETCH = 8  # positions of a row of one token; 16384 is twice what the checkpoint was trained on


def method(config):
    config.data.positions = "pose"
    config.data.max_position = STRETCH * config.data.seq_len
    return config


def get_config():
    config = method(recipe("smollm2_135m_anchor"))
    config.rope.theta = 5e5  # the base that rows of 16384 tokens take
    return config
