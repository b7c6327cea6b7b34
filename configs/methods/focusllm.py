"""FocusLLM (arXiv 2408.11745) over a frozen SmolLM2-135M: chunks of 256 tokens become one key and value a layer.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir checkpoints/SmolLM2-135M-Instruct
    anchorjax train --config=methods/focusllm --workdir=runs/focusllm
    anchorjax convert focus runs/focusllm checkpoints/focusllm

Hardware: two cores and 8 GB, as smollm2_135m_anchor. A row of 2048 tokens is the anchor, a memory of six chunks of 256,
and a local part of 511. The checkpoint in init_from stays frozen; documents must be as long as a row.
"""

from anchorjax.config import recipe

CHUNKS = 6


def method(config):
    config.focus.chunk = config.data.seq_len // 8
    config.focus.local = config.data.seq_len - 1 - CHUNKS * config.focus.chunk
    config.focus.prompt = config.focus.chunk // 4
    return config


def get_config():
    config = method(recipe("smollm2_135m_anchor"))
    config.optimizer.learning_rate = 2e-4
    return config
