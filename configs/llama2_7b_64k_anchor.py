"""Llama 2 7B to 64K tokens with AnchorAttention: the paper's recipe.

    anchorjax prepare --config=llama2_7b_64k_anchor \\
        --config.data.source=jsonl:DIR --config.data.store=stores/slimpajama
    anchorjax train --config=llama2_7b_64k_anchor --workdir=runs/llama2_7b_64k_anchor \\
        --config.init_from=checkpoints/Llama-2-7b-hf --config.data.store=stores/slimpajama

Tokens: 8 rows of 65,536 a step, 0.52M; 2000 steps, 1.0B in all.
Hardware: the recipe has not run. It takes 8 devices, or any multiple: fsdp 8, and the others along context. Start the
command on each host (docs/running.md). Several TPU slices: --config.mesh.slices=2. Peak memory of a device, compiled
in November 2026 with `python -m benchmarks.compiled.collectives --recipe=NAME --hardware=v5p:2x4x4` and the like:
32 TPU v5p 27.9 GB, 32 A100 30.0 GB (fsdp 8, context 4).
"""

from anchorjax.config import paper
from anchorjax.models import families


def get_config():
    model, _ = families.published("llama2_7b")
    return paper(model, "checkpoints/Llama-2-7b-hf", seq_len=65536, theta=5e6)
