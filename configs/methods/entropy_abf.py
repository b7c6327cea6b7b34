"""SmolLM2-135M on rows of 16K tokens with Entropy-ABF (arXiv 2401.07004) under the anchor, on a laptop.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir checkpoints/SmolLM2-135M-Instruct
    anchorjax train --config=methods/entropy_abf --workdir=runs/entropy_abf

Hardware: two cores and 8 GB. A step has eight times the tokens of smollm2_135m_anchor. The scale grows behind position
8191, up to which the checkpoint was trained, so that rows must be longer than that. The authors' smallest run, of 100
conversations of 16K tokens, has six steps.
"""

from anchorjax.config import recipe


def method(config):
    config.attention.logit_scale = "entropy_abf"
    config.rope.theta = 5e5  # the authors' base, for 16K positions
    return config


def get_config():
    config = method(recipe("smollm2_135m_anchor"))
    config.data.seq_len = 16384
    config.train.steps = 6
    config.train.log_every = 1
    config.optimizer.warmup_steps = 0
    config.eval.every = 3
    config.checkpoint.every = 3
    return config
