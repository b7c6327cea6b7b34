"""A small Llama on Jane Austen and the King James Bible: six minutes on two CPU cores.

    anchorjax train --config=quickstart --workdir=runs/quickstart

Hardware: two cores, no accelerator. 0.9M parameters, 300 steps of one 4096-byte row (1.2M bytes, 15% of an epoch).
"""

from anchorjax.config import base


def get_config():
    config = base()
    # Small, so that 300 steps fit into six minutes: so early in training, more updates help more than more width.
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 2
    config.model.num_kv_heads = 1
    config.model.head_dim = 32
    config.model.remat = "none"  # the products of one short row fit in memory, and recomputing them takes time
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 15
    config.optimizer.final_fraction = 0.05
    config.train.steps = 300
    config.train.log_every = 10
    config.eval.every = 100
    config.eval.rows = 4
    config.checkpoint.every = 50
    return config
