"""Llama 3 8B to 128K tokens with AnchorAttention: the paper's recipe.

    anchorjax prepare --config=llama3_8b_128k_anchor \\
        --config.data.source=jsonl:DIR --config.data.store=stores/slimpajama
    anchorjax train --config=llama3_8b_128k_anchor --workdir=runs/llama3_8b_128k_anchor \\
        --config.init_from=checkpoints/Meta-Llama-3-8B --config.data.store=stores/slimpajama

Tokens: 8 rows of 131,072 a step, 1.05M; 2000 steps, 2.1B in all.
Hardware: the recipe has not run. It takes 8 devices, or any multiple: fsdp 8, and the others along context. Start the
command on each host (docs/running.md). Several TPU slices: --config.mesh.slices=2. Peak memory of a device, compiled
in November 2026 with `python -m benchmarks.compiled.collectives --recipe=NAME --hardware=v5p:4x4x4` and the like:
64 TPU v5p 30.1 GB, 64 H100 30.0 GB (fsdp 8, context 8).
By `benchmarks.compiled.memory`:
8 H100 64.9 GB (fsdp 8) with --config.model.remat=full --config.model.ffn_chunk=8192.
8 H100 30.2 GB with --config.model.remat=offload instead, and 69.3 GB of the host's memory for each of them.
"""

from anchorjax.config import paper
from anchorjax.models import families


def get_config():
    model, _ = families.published("llama3_8b")
    return paper(model, "checkpoints/Meta-Llama-3-8B", seq_len=131072, theta=1e7)
