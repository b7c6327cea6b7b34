"""SmolLM2-135M with EXACT (arXiv 2605.10544) under the anchor: targets that see a long context weigh more, on a laptop.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir checkpoints/SmolLM2-135M-Instruct
    anchorjax train --config=methods/exact --workdir=runs/exact

Hardware: two cores and 8 GB, about 15 minutes, as smollm2_135m_anchor, from which only the weights of the loss differ.
"""

from anchorjax.config import recipe


def method(config):
    config.train.objective = "exact"
    return config


def get_config():
    return method(recipe("smollm2_135m_anchor"))
