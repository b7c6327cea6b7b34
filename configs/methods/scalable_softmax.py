"""SmolLM2-135M with scalable softmax (arXiv 2501.19399) under the anchor: s log n by head, n keys seen, on a laptop.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir checkpoints/SmolLM2-135M-Instruct
    anchorjax train --config=methods/scalable_softmax --workdir=runs/scalable_softmax

Hardware: two cores and 8 GB, about 15 minutes, as smollm2_135m_anchor.
"""

import math

from anchorjax.config import recipe


def method(config):
    config.attention.logit_scale = "scalable_softmax"
    config.attention.logit_scale_by = "visible"
    config.attention.logit_scale_from = 0  # the paper scales all layers
    # At this number of keys a checkpoint's logits are its own at first: log n of a row of T tokens is log(T / e) on
    # average.
    config.attention.logit_scale_length = max(2, round(config.data.seq_len / math.e))
    return config


def get_config():
    return method(recipe("smollm2_135m_anchor"))
