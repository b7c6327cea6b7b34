"""Continued pretraining of SmolLM2-135M with AnchorAttention on the shipped books: real weights on a laptop.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir checkpoints/SmolLM2-135M-Instruct
    anchorjax train --config=smollm2_135m_anchor --workdir=runs/smollm2_135m_anchor
    anchorjax convert to-hf runs/smollm2_135m_anchor checkpoints/SmolLM2-135M-anchor

Hardware: two cores and 8 GB, about 15 minutes: 30 steps of one row of 2048 tokens. For rows of 16384 tokens, more
than the checkpoint's context of 8192, add --config.rope.theta=5e5.
"""

from anchorjax.config import base


def get_config():
    config = base()
    config.init_from = "checkpoints/SmolLM2-135M-Instruct"
    config.model.compute_dtype = "float32"  # CPUs emulate bfloat16, at a twentieth of the speed
    config.data.seq_len = 2048
    config.optimizer.learning_rate = 5e-5
    config.optimizer.warmup_steps = 5
    config.train.steps = 30
    config.train.log_every = 5
    config.eval.every = 10
    config.eval.rows = 4
    config.eval.final_rows = 8
    config.checkpoint.every = 10
    return config
