"""SmolLM2-135M for 16K positions on rows of 2048 tokens: PoSE (arXiv 2309.10400) under the anchor, on a laptop.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir checkpoints/SmolLM2-135M-Instruct
    anchorjax train --config=smollm2_135m_pose --workdir=runs/smollm2_135m_pose

Hardware: two cores and 8 GB, about 15 minutes, as smollm2_135m_anchor. Positions skip inside documents, so that rows of
2048 tokens hold positions up to 16383. Rows for held-out losses do not skip.
"""

from anchorjax.config import recipe


def get_config():
    config = recipe("smollm2_135m_anchor")
    config.data.positions = "pose"
    config.data.max_position = 16384  # the checkpoint was trained on 8192
    config.rope.theta = 5e5  # the base that rows of 16384 tokens take
    return config
