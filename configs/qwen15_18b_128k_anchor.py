"""Qwen 1.5 1.8B to 128K tokens with AnchorAttention: the paper's recipe.

    anchorjax prepare --config=qwen15_18b_128k_anchor \\
        --config.data.source=jsonl:DIR --config.data.store=stores/slimpajama
    anchorjax train --config=qwen15_18b_128k_anchor --workdir=runs/qwen15_18b_128k_anchor \\
        --config.init_from=checkpoints/Qwen1.5-1.8B --config.data.store=stores/slimpajama

Qwen has no BOS: its EOS is the anchor, as in the paper.
Tokens: 8 rows of 131,072 a step, 1.05M; 2000 steps, 2.1B in all.
Hardware: the recipe has not run. It takes 8 devices, or any multiple: fsdp 8, and the others along context. Start the
command on each host (docs/running.md). Several TPU slices: --config.mesh.slices=2. Memory of a device (compiled),
seconds of a step and MFU (modelled), in November 2026 by `anchorjax plan --config=NAME --target=TARGET` with the
flags of the line (docs/scaling.md):
64 TPU v5p (v5p:4x4x4): 11.7 GB, 1.7 s, 23%
8 H100 (h100:8): 42.3 GB, 4.5 s, 32%
"""

from anchorjax.config import paper
from anchorjax.models import families


def get_config():
    model, _ = families.published("qwen15_1800m")
    return paper(model, "checkpoints/Qwen1.5-1.8B", seq_len=131072, theta=1e7)
