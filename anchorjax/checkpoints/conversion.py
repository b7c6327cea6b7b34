"""Weights from a Hugging Face directory to one of ours, and back.

Ours are a run's directory, and what `from_hf` writes: `config.json` with the sections of the model alone, and one
checkpoint of step 0.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from anchorjax import processes, sharding
from anchorjax.checkpoints.huggingface import checkpoint as hf_checkpoint
from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.checkpoints.huggingface import tokenizer as hf_tokenizer
from anchorjax.checkpoints.huggingface.directory import TOKENIZER, copy_files, new_directory_of_job
from anchorjax.checkpoints.huggingface.weights import Weights
from anchorjax.checkpoints.orbax import Checkpoints, bytes_of_largest
from anchorjax.checkpoints.pretrained import SOURCE, Pretrained, keep_source
from anchorjax.config import AttentionConfig, LoraConfig, ModelConfig, RopeConfig, load_config, max_position
from anchorjax.data.text.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from anchorjax.errors import WeightsError, WorkdirError
from anchorjax.models.decoder import Decoder
from anchorjax.models.linear import named_leaves
from anchorjax.models.spec import Spec
from anchorjax.processes import Watchdog

INTRA_DOC = "intra_doc"  # the mask under which no document sees BOS


@dataclasses.dataclass(frozen=True)
class Imported:
    """What `from_hf` wrote.

    Attributes:
      parameters: how many numbers the weights have.
      dtype: of the weights.
    """

    parameters: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class Exported:
    """What `to_hf` wrote.

    Attributes:
      max_position: positions, as `max_position_embeddings` names them.
      dtype: of the weights.
      changes: one sentence for each change of the tokenizer.
      notes: one sentence for each computation that other tools do otherwise.
    """

    family: str
    max_position: int
    dtype: str
    changes: tuple[str, ...]
    notes: tuple[str, ...]


def from_hf(directory: Path, out: Path) -> Imported:
    """Writes a Hugging Face checkpoint as one of ours, without loss: bfloat16 stays, float16 becomes float32.

    Raises:
      WeightsError: the checkpoint cannot be read or is not supported, or `out` exists and is not empty.
    """
    pretrained = processes.together(lambda: Pretrained.open(directory))
    if "model_type" not in hf_config.load(pretrained.directory):
        raise WeightsError(f"{directory} is a run's, or what from-hf made, and not a Hugging Face directory")
    dtype = "bfloat16" if Weights.open(directory).dtype == "bfloat16" else "float32"
    sections = {
        "model": dict(pretrained.model)
        | {"compute_dtype": dtype, "param_dtype": dtype, "remat": "none", "dropout": 0.0},
        "rope": dict(pretrained.rope) | {"dtype": "float32"},
        "lora": {"rank": 0, "alpha": 0.0, "targets": ()},
    }
    spec = _spec(sections)
    with new_directory_of_job(out) as part, jax.set_mesh(_mesh(spec.model)):
        params = sharding.zeros(lambda: Decoder(jax.random.key(0), spec))
        with Watchdog.of_weights(params):
            params = pretrained.load(params, spec)

        def keep() -> None:
            (part / hf_config.FILE).write_text(json.dumps(sections, indent=2) + "\n")
            keep_source(part, pretrained)

        processes.on_main(keep)
        checkpoints = Checkpoints(part, keep=1, host_bytes=bytes_of_largest(params))
        with Watchdog.of_weights(params):
            checkpoints.save(0, {"params": params}, sections, data=None)
            checkpoints.close()
    return Imported(sum(x.size for x in jax.tree.leaves(params)), dtype)


def to_hf(checkpoint: Path, directory: Path, dtype: str | None = None) -> Exported:
    """Writes the newest weights of a directory of ours as a Hugging Face checkpoint, with LoRA adapters merged.

    Args:
      dtype: of the weights, one of `huggingface.checkpoint.DTYPES`; None: that of the checkpoint that training began
        with, and float32 if there was none.

    Raises:
      WorkdirError, CheckpointError: `checkpoint` is not one of ours, or cannot be read.
      WeightsError: no checkpoint of the family can express the model, or `directory` exists and is not empty.
    """
    sections = processes.together(lambda: load_config(checkpoint))
    if not {"model", "rope", "lora"} <= sections.keys():
        raise WorkdirError(f"{checkpoint} is no run, and was not made by from-hf")
    _refuse_logit_scale(checkpoint, sections)
    if sections.get("focus", {}).get("chunk"):
        raise WorkdirError(
            f"{checkpoint} is a run with focus.chunk, which no other tool knows; use anchorjax convert focus"
        )
    spec, source = _spec(sections), checkpoint / SOURCE
    fields = hf_config.load(source) if (source / hf_config.FILE).exists() else {}
    dtype = dtype or fields.get("torch_dtype") or fields.get("dtype") or "float32"
    if dtype not in hf_checkpoint.DTYPES:
        raise WeightsError(f"{source}/{hf_config.FILE}: weights are {dtype}; choose --dtype")
    run = sections.get("data")  # None: weights that from-hf read, with a tokenizer that stays as it is
    name = Pretrained.open(checkpoint).tokenizer
    tokenizer = hf_tokenizer.open_exported(source) if run and name == str(source) else None
    positions = max(max_position(run or {}), fields.get("max_position_embeddings") or 0)
    if tokenizer:
        fields["bos_token_id"] = tokenizer.bos_id
        fields["eos_token_id"] = hf_tokenizer.ends(source / hf_config.FILE, tokenizer.eos_id)
    elif run and name == "bytes":
        fields |= {f"{key}_token_id": getattr(ByteTokenizer(), f"{key}_id") for key in ("bos", "eos", "pad")}
    written = hf_config.write(spec.model, spec.rope, max_position=positions, dtype=dtype, source=fields)
    with new_directory_of_job(directory) as part, jax.set_mesh(_mesh(spec.model)):
        like = sharding.abstract(lambda: Decoder(jax.random.key(0), spec))
        checkpoints = Checkpoints(checkpoint, keep=1, read_only=True, host_bytes=bytes_of_largest(like))
        with Watchdog.of_weights(like):
            weights = checkpoints.restore_weights(named_leaves(like))
        params = jax.tree.unflatten(jax.tree.structure(like), weights.values())
        with Watchdog.of_weights(like):
            hf_checkpoint.save(params, spec.model, spec.lora, part, dtype)

        def keep() -> list[str]:
            (part / hf_config.FILE).write_text(json.dumps(written, indent=2) + "\n")
            if source.is_dir() and name != "bytes":  # a run of bytes has that of its checkpoint there
                copy_files(source, part, TOKENIZER)
            if not tokenizer:
                return []
            return hf_tokenizer.export(part, tokenizer, positions, anchored=run["mask"] != INTRA_DOC)

        changes = processes.value_of_main(keep)
    notes = tuple(_notes(sections, spec, dtype, tokenizer))
    return Exported(spec.model.family, positions, dtype, tuple(changes), notes)


def _refuse_logit_scale(checkpoint: Path, sections: Mapping[str, Any]) -> None:
    name = sections.get("attention", {}).get("logit_scale", "none")
    if name != "none":
        raise WeightsError(
            f"{checkpoint} was trained with attention.logit_scale={name}, for which a Hugging Face checkpoint has no "
            "field: other tools would compute other logits. anchorjax evaluate and generate take the run's directory"
        )


def _notes(
    sections: Mapping[str, Any], spec: Spec, dtype: str, tokenizer: HuggingFaceTokenizer | None
) -> Iterator[str]:
    """Yields what other tools compute otherwise than it is computed here."""
    run = sections.get("data")
    variant = sections.get("attention", {}).get("variant", "plain")
    if variant != "plain":
        yield f"layers attend by attention.variant={variant} here; other tools compute plain attention"
    if spec.rope.depends_on_length:
        yield f"{spec.rope.scaling} RoPE goes by the row's length here and by the prompt's in transformers"
    if spec.model.sliding_window:
        yield "here the anchor stays in sight of layers with a window; other tools lose it there"
    if dtype != spec.rope.dtype:
        yield f"RoPE's cosines and sines are {dtype} in transformers, and {spec.rope.dtype} here"
    if run and run["mask"] == INTRA_DOC and tokenizer:
        front = tokenizer.encode_with_specials("", frame=True).tolist()
        what = " ".join(map(tokenizer.rules.id_to_token, front)) if front else "nothing"
        yield (
            f"documents of a run with mask={INTRA_DOC} have nothing in front; the tokenizer puts {what} in front of a "
            "text, as it did, and eval/ puts BOS there"
        )
    if run and not tokenizer:
        yield "the run is of bytes, or its tokenizer is lost: there is none that other tools could load"


def _spec(sections: Mapping[str, Any]) -> Spec:
    parts = (kind(**sections[kind.NAME]) for kind in (ModelConfig, RopeConfig, LoraConfig))
    attention = AttentionConfig("reference", 1, 1)  # of no consequence for weights, as both numbers
    return Spec(*parts, attention, num_anchors=0, max_position=2)


def _mesh(model: ModelConfig) -> jax.sharding.Mesh:
    """As many devices as the width can be cut for; in several processes all, so that none is without a part."""
    cut = math.gcd(jax.device_count(), model.d_model)
    copies = jax.device_count() // cut if processes.count() > 1 else 1
    return sharding.make_mesh({"data": copies, "fsdp": cut, "context": 1, "tensor": 1}, jax.devices()[: copies * cut])
