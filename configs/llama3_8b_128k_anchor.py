"""Llama 3 8B to 128K tokens with AnchorAttention: the paper's recipe.

    anchorjax prepare --config=llama3_8b_128k_anchor \\
        --config.data.source=jsonl:DIR --config.data.store=stores/slimpajama
    anchorjax train --config=llama3_8b_128k_anchor --workdir=runs/llama3_8b_128k_anchor \\
        --config.init_from=checkpoints/Meta-Llama-3-8B --config.data.store=stores/slimpajama

Tokens: 8 rows of 131,072 a step, 1.05M; 2000 steps, 2.1B in all.
Hardware: the recipe has not run. It takes 8 devices, or any multiple: fsdp 8, and the others along context. Start the
command on each host (docs/running.md). Several TPU slices: --config.mesh.slices=2. Memory of a device (compiled),
seconds of a step and MFU (modelled), in November 2026 by `anchorjax plan --config=NAME --target=TARGET` with the
flags of the line (docs/scaling.md):
64 TPU v5p (v5p:4x4x4): 30.2 GB, 4.3 s, 41%
8 H100 (h100:8) with --config.model.remat=full --config.model.ffn_chunk=8192: 65.9 GB, 17.7 s, 37%
8 H100 (h100:8) with --config.model.remat=offload --config.model.ffn_chunk=8192: 28.5 GB, 16.5 s, 39%; host 69.3 GB
"""

from anchorjax.config import paper
from anchorjax.models import families


def get_config():
    model, _ = families.published("llama3_8b")
    return paper(model, "checkpoints/Meta-Llama-3-8B", seq_len=131072, theta=1e7)
