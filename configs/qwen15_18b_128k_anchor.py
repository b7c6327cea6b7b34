"""Qwen 1.5 1.8B to 128K tokens with AnchorAttention: the paper's recipe.

    python train.py --config=configs/qwen15_18b_128k_anchor.py --workdir=runs/qwen15_18b_128k_anchor \\
        --config.init_from=checkpoints/Qwen1.5-1.8B --config.data.source=tfds:NAME

Qwen has no beginning of sequence: its end of sequence is the anchor, as in the paper.
Tokens: 8 rows of 131,072 a step, 1.05M; 2000 steps, 2.1B in all.
Hardware: written for 64 TPU v5p or H100 (fsdp 8, context 8); it has not been run on either.
Memory a device, modelled: weights, two moments and gradients in fp32, cut over fsdp, 1.8B x 16 bytes / 8 =
3.6 GB; with remat "attention" each layer keeps its input and its attention output in bf16, 24 x 16,384 tokens x
2 x 2048 x 2 bytes = 3.2 GB; beside them the keys and values of a whole row and one layer's work.
"""

from configs import common


def get_config():
    return common.paper("qwen15_1800m", "checkpoints/Qwen1.5-1.8B", seq_len=131072, theta=1e7)
