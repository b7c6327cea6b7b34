"""Supervised fine-tuning of SmolLM2-135M-Instruct on conversations, packed behind one anchor, on a laptop.

    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir checkpoints/SmolLM2-135M-Instruct
    python -m anchorjax.data.book_conversations data/conversations.jsonl
    anchorjax prepare --config=smollm2_135m_sft
    anchorjax train --config=smollm2_135m_sft --workdir=runs/smollm2_135m_sft

The second command makes conversations about the shipped books, to try it with. For your own, give
--config.data.source=jsonl:PATH or parquet:PATH, --config.data.messages_key and another --config.data.store.

Hardware: two cores and 8 GB, about 15 minutes, as smollm2_135m_anchor. Only the assistant's tokens are targets.
"""

from anchorjax.config import recipe


def get_config():
    config = recipe("smollm2_135m_anchor")
    config.data.source = "jsonl:data/conversations.jsonl"
    config.data.messages_key = "messages"
    config.data.store = "stores/conversations"
    config.data.packing = "best_fit"  # a cut conversation would hide its beginning from the rest
    config.optimizer.learning_rate = 2e-5
    return config
