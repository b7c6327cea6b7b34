"""SmolLM2-135M with LongCE (arXiv 2410.23771) under the anchor: targets that a long context helps weigh more.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir checkpoints/SmolLM2-135M-Instruct
    anchorjax train --config=methods/longce --workdir=runs/longce

Hardware: two cores and 8 GB, as smollm2_135m_anchor, from which the objective differs. A step also runs short windows
of the long documents, up to 4.4 times the row's tokens, without a gradient (docs/methods.md).
"""

from anchorjax.config import recipe


def method(config):
    config.train.objective = "longce"
    # The paper's sizes, in parts of its rows of 32768 tokens: a context of 4096 and a stride of 1024.
    config.train.longce_context = config.data.seq_len // 8
    config.train.longce_stride = config.data.seq_len // 32
    return config


def get_config():
    return method(recipe("smollm2_135m_anchor"))
