"""Llama 2 7B to 64K tokens with AnchorAttention: the paper's recipe.

    anchorjax prepare --config=llama2_7b_64k_anchor \\
        --config.data.source=jsonl:DIR --config.data.store=stores/slimpajama
    anchorjax train --config=llama2_7b_64k_anchor --workdir=runs/llama2_7b_64k_anchor \\
        --config.init_from=checkpoints/Llama-2-7b-hf --config.data.store=stores/slimpajama

Tokens: 8 rows of 65,536 a step, 0.52M; 2000 steps, 1.0B in all.
Hardware: the recipe has not run. It takes 8 devices, or any multiple: fsdp 8, and the others along context. Start the
command on each host (docs/running.md). Several TPU slices: --config.mesh.slices=2. Memory of a device (compiled),
seconds of a step and MFU (modelled), in November 2026 by `anchorjax plan --config=NAME --target=TARGET` with the
flags of the line (docs/scaling.md):
32 TPU v5p (v5p:2x4x4): 29.2 GB, 4.8 s, 32%
8 A100 (a100:8): 63.5 GB, 21.1 s, 43%
"""

from anchorjax.config import paper
from anchorjax.models import families


def get_config():
    model, _ = families.published("llama2_7b")
    return paper(model, "checkpoints/Llama-2-7b-hf", seq_len=65536, theta=5e6)
