"""Qwen 1.5 1.8B to 128K tokens with AnchorAttention: the paper's recipe.

    anchorjax prepare --config=qwen15_18b_128k_anchor \\
        --config.data.source=jsonl:DIR --config.data.store=stores/slimpajama
    anchorjax train --config=qwen15_18b_128k_anchor --workdir=runs/qwen15_18b_128k_anchor \\
        --config.init_from=checkpoints/Qwen1.5-1.8B --config.data.store=stores/slimpajama

Qwen has no BOS: its EOS is the anchor, as in the paper.
Tokens: 8 rows of 131,072 a step, 1.05M; 2000 steps, 2.1B in all.
Hardware: the recipe has not run. It takes 8 devices, or any multiple: fsdp 8, and the others along context. Start the
command on each host (docs/running.md). Several TPU slices: --config.mesh.slices=2. Peak memory of a device, compiled
in November 2026 with `python -m benchmarks.compiled.collectives --recipe=NAME --hardware=v5p:4x4x4` and the like:
64 TPU v5p 10.9 GB, 64 TPU v5e 10.9 GB (fsdp 8, context 8).
"""

from anchorjax.config import paper
from anchorjax.models import families


def get_config():
    model, _ = families.published("qwen15_1800m")
    return paper(model, "checkpoints/Qwen1.5-1.8B", seq_len=131072, theta=1e7)
