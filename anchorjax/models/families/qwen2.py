"""Qwen 1.5, 2 and 2.5: Llama with biases on queries, keys and values (arXiv 2407.10671, 2412.15115)."""

from anchorjax.models.families import LLAMA_BLOCK, QKV_BIAS, SIZES, Family, table

_SIZES = {
    "qwen15_1800m": (24, 2048, 5504, 16, 16, 128, 151936, False, 1e-6),
    "qwen25_500m": (24, 896, 4864, 14, 2, 64, 151936, True, 1e-6),
    "qwen25_1500m": (28, 1536, 8960, 12, 2, 128, 151936, True, 1e-6),
    "qwen25_7b": (28, 3584, 18944, 28, 4, 128, 152064, False, 1e-6),
    "qwen25_32b": (64, 5120, 27648, 40, 8, 128, 152064, False, 1e-5),
    "qwen25_72b": (80, 8192, 29568, 64, 8, 128, 152064, False, 1e-5),
}

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    features={"qkv_bias": True},
    defaults={"num_key_value_heads": 32},
    # A window in the upper layers alone exists in their code and in none of the published models.
    fixed={"use_sliding_window": False, "use_mrope": False},
    block=LLAMA_BLOCK | QKV_BIAS,
    sizes=table(SIZES, _SIZES),
    ropes={size: {"theta": 1e6} for size in _SIZES},
)
