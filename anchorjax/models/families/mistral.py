"""Mistral 7B: v0.1 with a window of 4096 tokens in every layer (arXiv 2310.06825), v0.3 without."""

from anchorjax.models.families import LLAMA_BLOCK, SIZES, Family, table

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    fields={"sliding_window": "sliding_window"},
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    block=LLAMA_BLOCK,
    sizes=table(
        f"{SIZES} sliding_window",
        {
            "mistral_7b_v01": (32, 4096, 14336, 32, 8, 128, 32000, False, 1e-5, 4096),
            "mistral_7b_v03": (32, 4096, 14336, 32, 8, 128, 32768, False, 1e-5, 0),
        },
    ),
    ropes={"mistral_7b_v03": {"theta": 1e6}},
)
