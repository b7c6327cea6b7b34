"""Model families: one file for each, found by its name, with what tells it from the others.

A family is a set of values of `ModelConfig`, names for its weights, and the fields of `config.json` (as Hugging
Face's transformers writes it) that stand for them. To add one, add a file with a `FAMILY`; the decoder, import,
export and their tests find it.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from anchorjax.config import PLAIN


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where one tensor of a checkpoint lies in the decoder.

    Attributes:
      name: of the leaf; a block's without "blocks.".
      inputs: how many of the leaf's axes are inputs. A linear layer rests as [outputs, inputs] in a checkpoint and
        as [inputs..., outputs...] here; 0 is what is no matrix product: norms, biases, the embedding.
    """

    name: str
    inputs: int = 0


# Names of a block's weights, behind "model.layers.N."; families change what differs.
LLAMA_BLOCK = {
    "input_layernorm.weight": Leaf("attention_norm_D"),
    "self_attn.q_proj.weight": Leaf("attention.q_DNH", 1),
    "self_attn.k_proj.weight": Leaf("attention.k_DKH", 1),
    "self_attn.v_proj.weight": Leaf("attention.v_DKH", 1),
    "self_attn.o_proj.weight": Leaf("attention.o_NHD", 2),
    "post_attention_layernorm.weight": Leaf("ffn_norm_D"),
    "mlp.gate_proj.weight": Leaf("ffn.gate_DF", 1),
    "mlp.up_proj.weight": Leaf("ffn.up_DF", 1),
    "mlp.down_proj.weight": Leaf("ffn.down_FD", 1),
}
QKV_BIAS = {
    "self_attn.q_proj.bias": Leaf("attention.q_bias_NH"),
    "self_attn.k_proj.bias": Leaf("attention.k_bias_KH"),
    "self_attn.v_proj.bias": Leaf("attention.v_bias_KH"),
}
QK_NORM = {
    "self_attn.q_norm.weight": Leaf("attention.q_norm_H"),
    "self_attn.k_norm.weight": Leaf("attention.k_norm_H"),
}
GEMMA_NORMS = {
    "post_attention_layernorm.weight": Leaf("post_attention_norm_D"),
    "pre_feedforward_layernorm.weight": Leaf("ffn_norm_D"),
    "post_feedforward_layernorm.weight": Leaf("post_ffn_norm_D"),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """What one family declares.

    Attributes:
      model_type, architecture: as `config.json` has them.
      features: its values of ModelConfig beside those of PLAIN, the same at every size.
      fields: its own fields of `config.json`, by ModelConfig's name for them.
      defaults: what transformers takes for fields that `config.json` leaves out.
      fixed: fields whose other values would change the maths in a way that the decoder does not know.
      block: names of a block's weights.
      local_theta: of layers with a window, where a family has two RoPE bases.
      sizes: published models by name: what of ModelConfig they add to `features`.
      ropes: their fields of RopeConfig.
    """

    model_type: str
    architecture: str
    block: Mapping[str, Leaf]
    sizes: Mapping[str, Mapping[str, Any]]
    ropes: Mapping[str, Mapping[str, Any]]
    features: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    local_theta: float = 0.0


def available() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Family:
    """The family called `name`. Raises ValueError listing those that exist."""
    if name not in available():
        raise ValueError(f"unknown model family {name!r}; allowed: {', '.join(available())}")
    return importlib.import_module(f"{__name__}.{name}").FAMILY


def published(size: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of ModelConfig and of RopeConfig of a published model, "llama3_8b" for one: for recipes.

    Raises:
      ValueError: no family has that size.
    """
    sizes = {size: name for name in available() for size in load(name).sizes}
    if size not in sizes:
        raise ValueError(f"unknown model {size!r}; allowed: {', '.join(sizes)}")
    family = load(sizes[size])
    return {"family": sizes[size], **PLAIN, **family.features, **family.sizes[size]}, dict(family.ropes.get(size, {}))


SIZES = "num_layers d_model d_ff num_heads num_kv_heads head_dim vocab_size tie_embeddings norm_eps"


def table(names: str, rows: Mapping[str, tuple]) -> dict[str, dict[str, Any]]:
    """Sizes from rows of values under `names`, words of one string."""
    return {size: dict(zip(names.split(), row, strict=True)) for size, row in rows.items()}
