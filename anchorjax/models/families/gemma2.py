"""Gemma 2 (arXiv 2408.00118): soft caps, a window in every other layer, norms on both sides of each branch."""

from anchorjax.models.families import GEMMA_NORMS, LLAMA_BLOCK, SIZES, Family, table

FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    features={
        "activation": "gelu_tanh",
        "post_norms": True,
        "norm_offset": True,
        "scale_embeddings": True,
        "global_every": 2,
    },
    fields={
        "sliding_window": "sliding_window",
        "query_pre_attn_scalar": "query_scale",
        "attn_logit_softcapping": "attention_soft_cap",
        "final_logit_softcapping": "final_soft_cap",
    },
    defaults={
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 256,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    fixed={"attention_bias": False, "use_bidirectional_attention": False},
    block=LLAMA_BLOCK | GEMMA_NORMS,
    sizes=table(
        f"{SIZES} query_scale sliding_window attention_soft_cap final_soft_cap",
        {
            "gemma2_2b": (26, 2304, 9216, 8, 4, 256, 256000, True, 1e-6, 256.0, 4096, 50.0, 30.0),
            "gemma2_9b": (42, 3584, 14336, 16, 8, 256, 256000, True, 1e-6, 256.0, 4096, 50.0, 30.0),
            "gemma2_27b": (46, 4608, 36864, 32, 16, 128, 256000, True, 1e-6, 144.0, 4096, 50.0, 30.0),
        },
    ),
    ropes={},
)
