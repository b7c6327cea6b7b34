"""Llama with an RMSNorm on every query and key head and with embeddings scaled by the root of their width."""

from anchorjax.models.families import LLAMA_BLOCK, QK_NORM, Family

FAMILY = Family(
    model_type="toy",
    architecture="ToyForCausalLM",
    features={"qk_norm": True, "scale_embeddings": True},
    block=LLAMA_BLOCK | QK_NORM,
    sizes={},
    ropes={},
)
