"""SmolLM2-135M on conversations, for 16K positions on rows of 2048 tokens: SkipAlign (arXiv 2405.03939), on a laptop.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir checkpoints/SmolLM2-135M-Instruct
    python -m anchorjax.data.book_conversations data/conversations.jsonl
    anchorjax prepare --config=methods/skipalign
    anchorjax train --config=methods/skipalign --workdir=runs/skipalign

Hardware: two cores and 8 GB, about 15 minutes, as smollm2_135m_sft. Positions skip between the turns of conversations,
so that rows of 2048 tokens hold positions up to 16383. Rows for held-out losses do not skip.
"""

from anchorjax.config import recipe

STRETCH = 8  # positions of a row of one token; 16384 is twice what the checkpoint was trained on


def method(config):
    config.data.positions = "skipalign"
    config.data.max_position = STRETCH * config.data.seq_len
    return config


def get_config():
    config = method(recipe("smollm2_135m_sft"))
    config.rope.theta = 5e5  # the base that rows of 16384 tokens take
    return config
