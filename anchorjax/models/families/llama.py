"""Llama 2, 3, 3.1, 3.2 (arXiv 2302.13971, 2307.09288, 2407.21783), and SmolLM2, which is one."""

from anchorjax.models.families import LLAMA_BLOCK, SIZES, Family, table

_LLAMA31 = {
    "theta": 5e5,
    "scaling": "llama3",
    "factor": 8.0,
    "original_length": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fixed={"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_interleaved": False},
    block=LLAMA_BLOCK,
    sizes=table(
        SIZES,
        {
            "llama2_7b": (32, 4096, 11008, 32, 32, 128, 32000, False, 1e-5),
            "llama2_13b": (40, 5120, 13824, 40, 40, 128, 32000, False, 1e-5),
            "llama2_70b": (80, 8192, 28672, 64, 8, 128, 32000, False, 1e-5),
            "llama3_8b": (32, 4096, 14336, 32, 8, 128, 128256, False, 1e-5),
            "llama3_70b": (80, 8192, 28672, 64, 8, 128, 128256, False, 1e-5),
            "llama31_8b": (32, 4096, 14336, 32, 8, 128, 128256, False, 1e-5),
            "llama31_405b": (126, 16384, 53248, 128, 8, 128, 128256, False, 1e-5),
            "llama32_1b": (16, 2048, 8192, 32, 8, 64, 128256, True, 1e-5),
            "llama32_3b": (28, 3072, 8192, 24, 8, 128, 128256, True, 1e-5),
            "smollm2_135m": (30, 576, 1536, 9, 3, 64, 49152, True, 1e-5),
            "smollm2_360m": (32, 960, 2560, 15, 5, 64, 49152, True, 1e-5),
            "smollm2_1700m": (24, 2048, 8192, 32, 32, 64, 49152, True, 1e-5),
        },
    ),
    ropes={
        "llama3_8b": {"theta": 5e5},
        "llama3_70b": {"theta": 5e5},
        "llama31_8b": _LLAMA31,
        "llama31_405b": _LLAMA31,
        "llama32_1b": _LLAMA31 | {"factor": 32.0},
        "llama32_3b": _LLAMA31 | {"factor": 32.0},
        "smollm2_135m": {"theta": 1e5},
        "smollm2_360m": {"theta": 1e5},
        "smollm2_1700m": {"theta": 1.3e5},
    },
)
