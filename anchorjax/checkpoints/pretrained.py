"""What a run starts from: a Hugging Face directory, or one of ours (a run's, or one made by `anchorjax convert`).

Ours hold `config.json`, `checkpoints/` and, if they began with a Hugging Face checkpoint, `source/`: its
`config.json` and tokenizer, so that a run needs nothing but its own directory to be resumed and exported.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from anchorjax.checkpoints.huggingface import checkpoint as hf_checkpoint
from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.checkpoints.huggingface.directory import TOKENIZER, copy_files, new_directory
from anchorjax.checkpoints.huggingface.tokenizer import ends, name_specials
from anchorjax.checkpoints.huggingface.weights import Weights
from anchorjax.checkpoints.orbax import Checkpoints, bytes_of_largest
from anchorjax.config import OPEN, AttentionConfig, Config, max_position
from anchorjax.data import Tokenizer
from anchorjax.errors import ConfigError, WeightsError
from anchorjax.models.decoder import Decoder
from anchorjax.models.linear import ADAPTERS, LogitScale, named_leaves, named_params
from anchorjax.models.spec import Spec

SOURCE = "source"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # ORG/NAME


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A directory whose configuration has been read; its weights have not.

    Attributes:
      model, rope: the fields of ModelConfig and RopeConfig that it decides.
      source: where a Hugging Face config.json and the tokenizer lie; None if there are none.
      tokenizer: what it was trained with, as in `data.tokenizer`; "auto" if that is not known.
      attention: a run's section, or nothing.
      max_position: positions of a run; 0 elsewhere.
    """

    directory: Path
    model: Mapping[str, Any]
    rope: Mapping[str, Any]
    source: Path | None
    tokenizer: str = "auto"
    has_adapters: bool = False
    attention: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_position: int = 0

    @classmethod
    def open(cls, directory: str | Path) -> "Pretrained":
        """Raises WeightsError: no such directory, no or bad configuration, or one that is not supported."""
        directory = Path(directory).expanduser()
        if not directory.is_dir():
            fault = f"{directory} is not a directory: it must hold a Hugging Face checkpoint, or be a run's"
            raise WeightsError(fault + download(directory))
        fields = hf_config.load(directory)
        if "model_type" in fields:
            return cls(directory, *hf_config.read(fields), directory, _tokenizer(directory))
        if not isinstance(fields.get("model"), dict) or not isinstance(fields.get("rope"), dict):
            raise WeightsError(f"{directory}/config.json is neither a Hugging Face checkpoint's nor a run's")
        model = {key: value for key, value in fields["model"].items() if key in OPEN}
        rope = {key: value for key, value in fields["rope"].items() if key != "dtype"}
        source = directory / SOURCE
        has_adapters = bool(fields.get("lora", {}).get("rank") or fields.get("focus", {}).get("chunk"))
        tokenizer = _tokenizer(source, fields)
        return cls(
            directory,
            model,
            rope,
            source if (source / hf_config.FILE).exists() else None,
            tokenizer,
            has_adapters,
            fields.get("attention", {}),
            max_position(fields.get("data", {})),
        )

    @property
    def max_position_embeddings(self) -> int:
        """What its Hugging Face config.json says; 0 if it says nothing, or there is none."""
        fields = hf_config.load(self.source) if self.source else {}
        return fields.get("max_position_embeddings") or 0

    def complete(self, config: Config) -> Config:
        """The run's configuration, with what it leaves to the checkpoint filled in.

        Raises:
          ConfigError: it asks for another model or other scales of logits, or the checkpoint has no tokenizer and it
            names none.
        """
        tokenizer = self.tokenizer if config.data.tokenizer == "auto" else config.data.tokenizer
        if tokenizer == "auto":
            where = self.source or self.directory
            raise ConfigError("data.tokenizer", "auto", f"{where} has no tokenizer.json; name a directory")
        data = dataclasses.replace(config.data, tokenizer=tokenizer)
        attention = self._attention(config.attention)
        return dataclasses.replace(config, data=data, attention=attention).completed(self.model, self.rope)

    def _attention(self, asked: AttentionConfig) -> AttentionConfig:
        """With the length that the checkpoint was trained on. One whose logits are scaled keeps its scale."""
        names = [each.field for each in AttentionConfig.declared() if each.field.startswith("logit_scale")]
        trained = {name: self.attention.get(name, getattr(AttentionConfig, name)) for name in names}
        is_scaled = trained["logit_scale"] != AttentionConfig.logit_scale
        for name, value in trained.items() if is_scaled else ():
            given = getattr(asked, name)
            if given != value and (name, given) != ("logit_scale_length", 0):
                raise ConfigError(f"attention.{name}", given, f"the checkpoint in init_from was trained with {value!r}")
        if asked.logit_scale == AttentionConfig.logit_scale or asked.logit_scale_length:
            return asked
        own = trained["logit_scale_length"] if is_scaled else self.max_position
        length = own or self.max_position_embeddings
        if length < 2:
            allowed = f"{self.source or self.directory} names no max_position_embeddings; give the length"
            raise ConfigError("attention.logit_scale_length", 0, allowed)
        return dataclasses.replace(asked, logit_scale_length=length)

    def load(self, params: Decoder, spec: Spec) -> Decoder:
        """The decoder with the checkpoint's weights; `params` gives devices and dtypes, and its buffers.

        Raises:
          WeightsError, WorkdirError, CheckpointError: the weights cannot be read, or are of another model.
        """
        fields = hf_config.load(self.directory)
        if "model_type" in fields:
            return hf_checkpoint.load(params, spec.model, Weights.open(self.directory))
        leaves, kinds = named_leaves(params), named_params(params)
        has_scales = fields.get("attention", {}).get("logit_scale") == spec.attention.logit_scale
        added = ADAPTERS if has_scales else ADAPTERS | LogitScale
        base = {name: leaf for name, leaf in leaves.items() if not isinstance(kinds[name], added)}
        like = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in base.items()}
        for leaf in base.values():
            leaf.delete()  # else the devices would hold all weights twice
        checkpoints = Checkpoints(self.directory, keep=1, read_only=True, host_bytes=bytes_of_largest(like))
        restored = checkpoints.restore_weights(like)
        return jax.tree.unflatten(jax.tree.structure(params), (leaves | restored).values())


def _tokenizer(files: Path, run: Mapping[str, Any] | None = None) -> str:
    """Bytes if the run named them; else what lies in `files`; else what the run named, or bytes if it named nothing.

    A run that began with a checkpoint has `files`, if empty: without them, they were lost and nothing is known.
    """
    run = run or {}
    name = run.get("data", {}).get("tokenizer", "auto")
    if name != "bytes" and (files / "tokenizer.json").exists():
        return str(files)
    is_known = "data" in run and not (files / hf_config.FILE).exists() and (files.is_dir() or not run.get("init_from"))
    return "bytes" if name == "auto" and is_known else name


def find(config: Config, workdir: Path | None = None) -> Pretrained | None:
    """What `config.init_from` names, or None. A run that has begun needs no more than its own directory.

    Raises:
      ConfigError: the directory is not there; WeightsError: it cannot be used.
    """
    if not config.init_from:
        return None
    # `source/` comes with the first state, so that a run that has one has begun.
    if workdir is not None and (workdir / SOURCE).is_dir() and (workdir / hf_config.FILE).exists():
        return dataclasses.replace(Pretrained.open(workdir), directory=Path(config.init_from).expanduser())
    if not Path(config.init_from).expanduser().is_dir():
        raise ConfigError("init_from", config.init_from, f"there is no such directory{download(config.init_from)}")
    pretrained = Pretrained.open(config.init_from)
    if pretrained.has_adapters:
        raise ConfigError(
            "init_from",
            config.init_from,
            "it holds adapters; merge them with anchorjax convert to-hf, if they are LoRA's",
        )
    return pretrained


def download(name: str | Path) -> str:
    """Returns how to download `name` if it looks like a model of the Hugging Face Hub (ORG/NAME), else nothing."""
    is_hub_id = _HUB_ID.fullmatch(str(name)) and not str(name).startswith(("checkpoints/", "runs/"))
    if not is_hub_id or Path(name).parent.exists():
        return ""
    return f"; to download it: hf download {name} --local-dir checkpoints/{Path(name).name}"


def keep_source(
    workdir: Path, pretrained: Pretrained | None, tokenizer: Tokenizer | None = None, tokenizer_dir: Path | None = None
) -> None:
    """Copies what a run needs of its checkpoint, beside the weights, into `workdir/source`: whole, or not at all.

    Args:
      pretrained: the checkpoint, if there is one.
      tokenizer, tokenizer_dir: the run's own and where it lies; without them, the checkpoint's.
    """
    source = pretrained.source if pretrained else None
    if (workdir / SOURCE).exists() or not (pretrained or tokenizer_dir):
        return
    with new_directory(workdir / SOURCE) as part:
        fields = hf_config.load(source) if source else {}
        if source and source == pretrained.directory:  # the tensors'; the field may be what they were trained in
            fields["torch_dtype"] = fields["dtype"] = Weights.open(source).dtype
        if fields and tokenizer_dir not in (None, source):
            fields |= {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
            # Some end turns, and not texts.
            fields["eos_token_id"] = ends(tokenizer_dir / hf_config.FILE, tokenizer.eos_id)
        if fields:
            (part / hf_config.FILE).write_text(json.dumps(fields, indent=2) + "\n")
        if tokenizer_dir or source:
            copy_files(tokenizer_dir or source, part, TOKENIZER)
        if tokenizer_dir and not fields and (tokenizer_dir / hf_config.FILE).exists():
            name_specials(part, tokenizer, ("bos", "eos", "pad"))  # which only its config.json may say
