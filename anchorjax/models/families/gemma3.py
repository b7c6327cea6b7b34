"""Gemma 3, text (arXiv 2503.19786): five layers with a window to one without, norms on queries and keys, no caps."""

from anchorjax.models.families import GEMMA_NORMS, LLAMA_BLOCK, QK_NORM, SIZES, Family, table

_SIZES = {
    "gemma3_270m": (18, 640, 2048, 4, 1, 256, 262144, True, 1e-6, 256.0, 512),
    "gemma3_1b": (26, 1152, 6912, 4, 1, 256, 262144, True, 1e-6, 256.0, 512),
}

FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    features={
        "activation": "gelu_tanh",
        "qk_norm": True,
        "post_norms": True,
        "norm_offset": True,
        "scale_embeddings": True,
        "global_every": 6,
    },
    fields={
        "sliding_window": "sliding_window",
        "query_pre_attn_scalar": "query_scale",
        "final_logit_softcapping": "final_soft_cap",
    },
    defaults={
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 256,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
    # transformers leaves the cap of their attention out, whatever it is.
    fixed={"attention_bias": False, "use_bidirectional_attention": False, "attn_logit_softcapping": None},
    local_theta=1e4,
    block=LLAMA_BLOCK | QK_NORM | GEMMA_NORMS,
    sizes=table(f"{SIZES} query_scale sliding_window", _SIZES),
    ropes={size: {"theta": 1e6, "local_theta": 1e4} for size in _SIZES},
)
