"""Tiny models of transformers with random weights: one for every family, by its name, and variants."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import pytest
import torch
import transformers

from anchorjax import sharding
from anchorjax.checkpoints.huggingface import checkpoint as hf_checkpoint
from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.checkpoints.huggingface.weights import Weights
from anchorjax.models import families
from anchorjax.models.decoder import Decoder
from anchorjax.models.spec import Spec
from tests.models.making import spec_of

T = 48  # tokens of a row
VOCABULARY = 264  # the three specials of a tiny tokenizer, and all 256 bytes
SMALL = dict(  # noqa: C408 - a table of keys
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256,
)  # fmt: skip
SCALED = {  # to 256 positions from the 32 of an imagined pre-training, so that a row reaches into what is scaled
    "linear": {"factor": 8.0},
    "dynamic": {"factor": 8.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 4.0},
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": {
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 5.0, 7.5],
    },
}
WINDOWED = {"head_dim": 16, "sliding_window": 9}
# Without a pad token: transformers keeps gradients from the embedding of one, which may as well be a word.
GEMMA = WINDOWED | {"query_pre_attn_scalar": 24, "pad_token_id": None}


def _llama(**changes):
    return lambda: transformers.LlamaConfig(**SMALL | changes)


def _scaled_llama(kind: str):
    original = {"max_position_embeddings": 32} if kind == "dynamic" else {}
    return _llama(**original, rope_parameters={"rope_type": kind, "rope_theta": 500.0, **SCALED[kind]})


CONFIGS = {
    "llama": _llama(tie_word_embeddings=True, rms_norm_eps=0.02),
    "llama untied": _llama(tie_word_embeddings=False),
    "llama with wide heads": _llama(head_dim=16, num_key_value_heads=4),
    **{f"llama {kind}": _scaled_llama(kind) for kind in SCALED},
    "mistral": lambda: transformers.MistralConfig(**SMALL, **WINDOWED),
    "mistral without window": lambda: transformers.MistralConfig(**SMALL, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen2 tied": lambda: transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=16),
    "gemma2": lambda: transformers.Gemma2Config(
        **SMALL, **GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=3.0
    ),
    "gemma2 without caps": lambda: transformers.Gemma2Config(
        **SMALL, **GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(  # the sixth layer sees all
        **SMALL | {"num_hidden_layers": 7},
        **GEMMA,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model of transformers, the directory it was saved in, and ours that was loaded from there."""

    theirs: transformers.PreTrainedModel
    directory: Path
    spec: Spec
    ours: Decoder


def names() -> list[str]:
    """Names of all families, whether they are in the table or not, and of the variants."""
    return [*families.available(), *(name for name in CONFIGS if name not in families.available())]


def make(
    name: str, directory: Path, dtype: torch.dtype = torch.float32, **changes: Any
) -> transformers.PreTrainedModel:
    """Saves it too. Its weights are large enough for every part to show in the logits; `changes` are of its config."""
    if name not in CONFIGS:
        pytest.fail(f"{name} has no tiny configuration in tests/checkpoints/huggingface/tiny.py, which parity needs")
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.update(changes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter, x in model.named_parameters():
            size = 0.3 if x.ndim == 1 else 1.5 / x.shape[-1] ** 0.5
            center = 1.0 if "norm" in parameter and "gemma" not in name else 0.0
            x.copy_(center + size * torch.randn_like(x))
    model = model.to(dtype).eval()
    model.save_pretrained(directory)
    return model


def read(directory: Path, lora: dict[str, Any] | None = None, **changes) -> Spec:
    """The shape of what lies there, in float32 unless changed."""
    model, rope = hf_config.read(hf_config.load(directory))
    model |= {"compute_dtype": "float32", "remat": "none", **changes}
    return spec_of(model, rope=rope, lora=lora, num_anchors=0, max_position=T)


def load(directory: Path, spec: Spec) -> Decoder:
    """Onto the current mesh."""
    params = sharding.zeros(lambda: Decoder(jax.random.key(0), spec))
    return hf_checkpoint.load(params, spec.model, Weights.open(directory))


def pair(name: str, directory: Path) -> Pair:
    theirs, spec = make(name, directory), read(directory)
    return Pair(theirs, directory, spec, load(directory, spec))
