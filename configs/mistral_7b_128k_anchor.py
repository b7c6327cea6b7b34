"""Mistral 7B v0.3 to 128K tokens with AnchorAttention: the paper's recipe.

    anchorjax prepare --config=mistral_7b_128k_anchor \\
        --config.data.source=jsonl:DIR --config.data.store=stores/slimpajama
    anchorjax train --config=mistral_7b_128k_anchor --workdir=runs/mistral_7b_128k_anchor \\
        --config.init_from=checkpoints/Mistral-7B-v0.3 --config.data.store=stores/slimpajama

Tokens: 8 rows of 131,072 a step, 1.05M; 2000 steps, 2.1B in all.
Hardware: the recipe has not run. It takes 8 devices, or any multiple: fsdp 8, and the others along context. Start the
command on each host (docs/running.md). Several TPU slices: --config.mesh.slices=2. Memory of a device (compiled),
seconds of a step and MFU (modelled), in November 2026 by `anchorjax plan --config=NAME --target=TARGET` with the
flags of the line (docs/scaling.md):
64 TPU v5p (v5p:4x4x4): 28.6 GB, 4.1 s, 41%
8 H100 (h100:8) with --config.model.remat=full --config.model.ffn_chunk=8192: 64.0 GB, 16.9 s, 37%
"""

from anchorjax.config import paper
from anchorjax.models import families


def get_config():
    model, _ = families.published("mistral_7b_v03")
    return paper(model, "checkpoints/Mistral-7B-v0.3", seq_len=131072, theta=1e7)
