"""Qwen 3, dense: Llama with an RMSNorm on every query and key head, without biases (arXiv 2505.09388)."""

from anchorjax.models.families import LLAMA_BLOCK, QK_NORM, SIZES, Family, table

_SIZES = {
    "qwen3_600m": (28, 1024, 3072, 16, 8, 128, 151936, True, 1e-6),
    "qwen3_1700m": (28, 2048, 6144, 16, 8, 128, 151936, True, 1e-6),
    "qwen3_4b": (36, 2560, 9728, 32, 8, 128, 151936, True, 1e-6),
    "qwen3_8b": (36, 4096, 12288, 32, 8, 128, 151936, False, 1e-6),
    "qwen3_14b": (40, 5120, 17408, 40, 8, 128, 151936, False, 1e-6),
    "qwen3_32b": (64, 5120, 25600, 64, 8, 128, 151936, False, 1e-6),
}

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    features={"qk_norm": True},
    defaults={"head_dim": 128, "num_key_value_heads": 32},
    fixed={"attention_bias": False, "use_sliding_window": False},
    block=LLAMA_BLOCK | QK_NORM,
    sizes=table(SIZES, _SIZES),
    ropes={size: {"theta": 1e6} for size in _SIZES},
)
