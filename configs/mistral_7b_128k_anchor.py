"""Mistral 7B v0.3 to 128K tokens with AnchorAttention: the paper's recipe.

    anchorjax prepare --config=mistral_7b_128k_anchor \\
        --config.data.source=jsonl:DIR --config.data.store=stores/slimpajama
    anchorjax train --config=mistral_7b_128k_anchor --workdir=runs/mistral_7b_128k_anchor \\
        --config.init_from=checkpoints/Mistral-7B-v0.3 --config.data.store=stores/slimpajama

Tokens: 8 rows of 131,072 a step, 1.05M; 2000 steps, 2.1B in all.
Hardware: the recipe has not run. It takes 8 devices, or any multiple: fsdp 8, and the others along context. Start the
command on each host (docs/running.md). Several TPU slices: --config.mesh.slices=2. Peak memory of a device, compiled
in November 2026 with `python -m benchmarks.compiled.collectives --recipe=NAME --hardware=v5p:4x4x4` and the like:
64 TPU v5p 28.5 GB (fsdp 8, context 8).
"""

from anchorjax.config import paper
from anchorjax.models import families


def get_config():
    model, _ = families.published("mistral_7b_v03")
    return paper(model, "checkpoints/Mistral-7B-v0.3", seq_len=131072, theta=1e7)
