"""FocusLLM's projections apart from the model that they stand beside: safetensors, and a JSON file that names both.

`focus.json` has the section "focus" of the run, and under "base" the model's sizes and a digest of its weights. The
tensors have the names, axes and dtype of the run's leaves, so that nothing is lost.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax import processes, sharding
from anchorjax.checkpoints.digest import digests
from anchorjax.checkpoints.huggingface.directory import new_directory
from anchorjax.checkpoints.huggingface.weights import Weights, write_files
from anchorjax.checkpoints.orbax import Checkpoints, bytes_of_largest
from anchorjax.config import SIZES, AttentionConfig, FocusConfig, LoraConfig, ModelConfig, RopeConfig, load_config
from anchorjax.errors import ConfigError, UsageError, WeightsError, WorkdirError
from anchorjax.files import read_json
from anchorjax.models.decoder import Decoder
from anchorjax.models.focus import CANDIDATE
from anchorjax.models.linear import named_leaves
from anchorjax.models.spec import Spec

FILE = "focus.json"
SAME = ("family", *SIZES, "vocab_size", "qkv_bias", "qk_norm")  # of the model, for an adapter to fit it


@dataclasses.dataclass(frozen=True)
class FocusAdapter:
    """A directory whose focus.json has been read.

    Attributes:
      focus: the section of the run.
      base: what focus.json says of the frozen model.
    """

    directory: Path
    focus: FocusConfig
    base: dict[str, Any]

    @classmethod
    def open(cls, directory: Path, model: ModelConfig) -> "FocusAdapter":
        """Raises WeightsError for a directory that is no adapter, or one of a model of other sizes."""
        fields = read_json(directory.expanduser() / FILE, WeightsError) or {}
        if not isinstance(fields.get("focus"), dict) or not isinstance(fields.get("base"), dict):
            raise WeightsError(f"{directory} is no adapter of FocusLLM: {FILE} is missing, or lacks focus and base")
        try:
            made = cls(directory.expanduser(), FocusConfig(**fields["focus"]), fields["base"])
        except (ConfigError, TypeError) as error:
            raise WeightsError(f"{directory}/{FILE}: {error}") from error
        for name in SAME:
            if made.base.get(name) != getattr(model, name):
                was, given = made.base.get(name), getattr(model, name)
                raise WeightsError(f"{directory} is of another model: its model.{name} is {was!r}, and here {given!r}")
        return made

    def load(self, params: Decoder) -> Decoder:
        """The decoder with the adapter's projections, in its own shardings and dtypes.

        Raises:
          WeightsError: the frozen weights are of another model, or a tensor is missing or has another shape.
        """
        leaves, weights = named_leaves(params), Weights.open(self.directory)
        if _digest(leaves) != self.base.get("digest"):
            raise WeightsError(f"{self.directory} was trained beside other weights than the model has")
        wanted = {name: leaf for name, leaf in leaves.items() if CANDIDATE in name}
        if weights.tensors.keys() != wanted.keys():
            odd = ", ".join(sorted(weights.tensors.keys() ^ wanted.keys()))
            raise WeightsError(f"{self.directory} lacks, or has too many of: {odd}")
        for name, leaf in wanted.items():
            value = weights.read(name)
            if value.shape != leaf.shape:
                raise WeightsError(f"{self.directory}: {name} has shape {value.shape}; the model's is {leaf.shape}")
            leaves[name] = sharding.put(value.astype(leaf.dtype), leaf.sharding.spec)
        return jax.tree.unflatten(jax.tree.structure(params), leaves.values())


def export(checkpoint: Path, directory: Path) -> FocusConfig:
    """Writes the newest projections of a run.

    Raises:
      UsageError: in a job of several processes.
      WorkdirError, CheckpointError: `checkpoint` is no run with focus.chunk, or cannot be read.
      WeightsError: `directory` exists and is not empty.
    """
    if processes.count() > 1:
        raise UsageError("anchorjax convert focus takes one process")
    sections = load_config(checkpoint)
    if not sections.get("focus", {}).get("chunk"):
        raise WorkdirError(f"{checkpoint} is no run with focus.chunk")
    model, rope, lora, focus = (
        kind(**sections[kind.NAME]) for kind in (ModelConfig, RopeConfig, LoraConfig, FocusConfig)
    )
    spec = Spec(model, rope, lora, AttentionConfig("reference", 1, 1), num_anchors=0, max_position=2, focus=focus)
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    with new_directory(directory) as part, jax.set_mesh(mesh):
        like = named_leaves(sharding.abstract(lambda: Decoder(jax.random.key(0), spec)))
        checkpoints = Checkpoints(checkpoint, keep=1, read_only=True, host_bytes=bytes_of_largest(like))
        leaves = checkpoints.restore_weights(like)
        tensors = {name: leaf for name, leaf in like.items() if CANDIDATE in name}
        write_files(part, tensors, lambda name: np.ascontiguousarray(leaves[name]))
        base = {name: getattr(model, name) for name in SAME} | {"digest": _digest(leaves)}
        fields = {"focus": dataclasses.asdict(focus), "base": base | {"init_from": sections["init_from"]}}
        (part / FILE).write_text(json.dumps(fields, indent=2) + "\n")
    return focus


def _digest(leaves: dict[str, jax.Array]) -> str:
    """Identifies the embedding and the frozen projections, in bfloat16: the same in whatever dtype they are loaded."""
    names = [name for name in leaves if name == "embed_VD" or (".attention." in name and name[-1].isupper())]
    frozen = (name for name in names if CANDIDATE not in name and "norm" not in name)
    narrow = jax.jit(lambda x: x.astype(jnp.bfloat16))
    return "-".join(f"{digests({name: narrow(leaves[name])})[name]:08x}" for name in sorted(frozen))
