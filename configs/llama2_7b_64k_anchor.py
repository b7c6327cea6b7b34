"""Llama 2 7B to 64K tokens with AnchorAttention: the paper's recipe.

    python train.py --config=configs/llama2_7b_64k_anchor.py --workdir=runs/llama2_7b_64k_anchor \\
        --config.init_from=checkpoints/Llama-2-7b-hf --config.data.source=tfds:NAME

Tokens: 8 rows of 65,536 a step, 0.52M; 2000 steps, 1.0B in all.
Hardware: written for 32 TPU v5p or H100 (fsdp 8, context 4); it has not been run on either.
Memory a device, modelled: weights, two moments and gradients in fp32, cut over fsdp, 6.7B x 16 bytes / 8 =
13.4 GB; with remat "attention" each layer keeps its input and its attention output in bf16, 32 x 16,384 tokens x
2 x 4096 x 2 bytes = 8.6 GB; beside them the keys and values of a whole row and one layer's work.
"""

from configs import common


def get_config():
    return common.paper("llama2_7b", "checkpoints/Llama-2-7b-hf", seq_len=65536, theta=5e6)
