"""Llama 3 8B to 128K tokens with AnchorAttention: the paper's recipe.

    python train.py --config=configs/llama3_8b_128k_anchor.py --workdir=runs/llama3_8b_128k_anchor \\
        --config.init_from=checkpoints/Meta-Llama-3-8B --config.data.source=tfds:NAME

Tokens: 8 rows of 131,072 a step, 1.05M; 2000 steps, 2.1B in all.
Hardware: written for 64 TPU v5p or H100 (fsdp 8, context 8); it has not been run on either.
Memory a device, modelled: weights, two moments and gradients in fp32, cut over fsdp, 8.0B x 16 bytes / 8 =
16.0 GB; with remat "attention" each layer keeps its input and its attention output in bf16, 32 x 16,384 tokens x
2 x 4096 x 2 bytes = 8.6 GB; beside them the keys and values of a whole row and one layer's work.
"""

from configs import common


def get_config():
    return common.paper("llama3_8b", "checkpoints/Meta-Llama-3-8B", seq_len=131072, theta=1e7)
