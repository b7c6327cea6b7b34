"""How much arithmetic a step needs, counted by what its mask lets through.

The usual formula charges the full causal triangle, of which a packed row of documents needs a small part. A run
reports both: `tflops` counts the live pairs, and `tflops_causal_equivalent` counts every row as one document, which is
what most trainers print. Recomputation (remat) is counted in neither.
"""

import jax

from anchorjax.config import FocusConfig, ModelConfig

# Dense bf16 peak of one JAX device in TFLOP/s, from the makers' data sheets. A kind that is not here has no
# MFU unless `train.peak_tflops` says one: a guessed peak would make a guessed MFU.
PEAK_TFLOPS = {
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
    "TPU7x": 2307.0 / 2,  # of a chip, which is two devices
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
    "NVIDIA B200": 2250.0,
}


def layer_weights(config: ModelConfig) -> tuple[int, int]:
    """Weights of the attention's and the feed-forward layer's matrices in one layer."""
    D, H = config.d_model, config.head_dim
    return 2 * D * H * (config.num_heads + config.num_kv_heads), 3 * D * config.d_ff


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that multiply every token: all but the input embedding (a look-up) and the norms."""
    return config.num_layers * sum(layer_weights(config)) + config.d_model * config.vocab_size


def train_flops(config: ModelConfig, tokens: float, pairs: float, frozen: bool = False) -> float:
    """Forward and backward FLOPs of `tokens` tokens with `pairs` visible (query, key) pairs.

    6 per weight and token, and 12 H per pair and query head (two matmuls forward, four backward):
    PaLM (arXiv 2204.02311), Appendix B, with the pairs counted instead of T^2. Frozen weights have no gradient: 4
    per weight. Adapters are not counted (below 1% of the weights).
    """
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * pairs
    return (4 if frozen else 6) * matmul_parameters(config) * tokens + attention


def forward_flops(config: ModelConfig, tokens: float, pairs: float, scored: float) -> float:
    """FLOPs of a forward pass, of whose `tokens` so many are scored over the vocabulary; pairs as in `train_flops`."""
    layers = config.num_layers * (sum(layer_weights(config)) * tokens + 2 * config.num_heads * config.head_dim * pairs)
    return 2 * (layers + config.d_model * config.vocab_size * scored)


def focus_train_flops(config: ModelConfig, focus: FocusConfig, seq_len: int) -> float:
    """FLOPs of one row of FocusLLM: chunks and prompts forward alone, their candidates and the local part backward too.

    Candidates have 6 per weight of attention's matrices, which are trained, and 4 per weight of the feed-forward layer.
    """
    chunks, document = focus.chunks(seq_len), focus.chunk + focus.prompt
    attention, ffn = layer_weights(config)
    head = config.num_heads * config.head_dim
    of_chunks = 2 * (attention + ffn) * (1 + chunks * (document - 1)) + 4 * head * chunks * causal_pairs(document)
    of_candidates = chunks * (6 * attention + 4 * ffn + 12 * head * (document + 1))
    local = 1 + focus.local
    of_local = 4 * (attention + ffn) * local + 12 * head * (causal_pairs(local) + chunks * local)
    of_words = 4 * config.d_model * config.vocab_size * local
    return config.num_layers * (of_chunks + of_candidates + of_local) + of_words


def causal_pairs(seq_len: int) -> float:
    return seq_len * (seq_len + 1) / 2


def peak_flops(configured_tflops: float) -> float | None:
    """Peak FLOP/s of all devices, or None where it is not known."""
    per_device = configured_tflops or PEAK_TFLOPS.get(jax.devices()[0].device_kind)
    return per_device * 1e12 * jax.device_count() if per_device else None
