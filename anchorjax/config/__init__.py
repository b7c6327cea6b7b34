"""The resolved configuration: frozen dataclasses that refuse impossible values by name.

`configs/common.py` lists the keys with their defaults and reasons; here is what each may be. `resolve` is
the only way from one to the other. Every fault is a `ConfigError`, whose one line names the key, the value
and what is allowed.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from typing import Any

from anchorjax.config.model import NEUTRAL_ROPE, OPEN, PLAIN, SIZES, LoraConfig, ModelConfig, RopeConfig
from anchorjax.config.section import MAX_INT, Section, choice, number
from anchorjax.errors import ConfigError
from anchorjax.types import IMPLEMENTATIONS, MASKS, PACKINGS, POSITIONS

__all__ = [
    "MAX_INT",
    "NEUTRAL_ROPE",
    "OPEN",
    "PLAIN",
    "SECTIONS",
    "SIZES",
    "AttentionConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RopeConfig",
    "Section",
    "TrainConfig",
    "resolve",
    "unknown_key",
]


@dataclasses.dataclass(frozen=True)
class AttentionConfig(Section):
    NAME = "attention"
    implementation: str = choice("auto", *IMPLEMENTATIONS)
    q_tile: int = number(0, 8192)
    kv_tile: int = number(0, 8192)


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    NAME = "data"
    source: str
    store: str
    tokenizer: str
    data_dir: str
    text_key: str
    source_key: str
    held_out_share: float = number(0, 0.5)
    bad_rows: str = choice("raise", "skip")
    max_bad_share: float = number(0, 1)
    max_row_bytes: int = number(1, 2**30)
    seq_len: int = number(2, 2**24)
    batch_size: int = number(1)
    mask: str = choice(*MASKS)
    positions: str = choice(*POSITIONS)
    boundary_targets: bool
    packing: str = choice(*PACKINGS)
    tags: bool
    interleave: int = number(0, 1024)
    upsample_long: bool
    prefetch: int = number(0, 1024)
    workers: int = number(0, 256)

    def __post_init__(self):
        super().__post_init__()
        self.require(self.interleave != 1, "interleave", "it must be 0, or 2 or more pieces of a document")
        clash = self.interleave and self.boundary_targets  # a document's end has the middle of another behind it
        self.require(not clash, "boundary_targets", f"it must be False with data.interleave={self.interleave}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    NAME = "optimizer"
    learning_rate: float = number(0, 10, open_low=True)
    schedule: str = choice("constant", "cosine")
    warmup_steps: int = number(0)
    final_fraction: float = number(0, 1)
    beta1: float = number(0, 0.9999)
    beta2: float = number(0, 0.999999)
    eps: float = number(0, 1, open_low=True)
    weight_decay: float = number(0, 1)
    clip_norm: float = number(0)


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    NAME = "train"
    steps: int = number(1)
    grad_accum_steps: int = number(1)
    loss_chunk: int = number(1)
    log_every: int = number(1)
    tensorboard: bool
    peak_tflops: float = number(0)


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section):
    NAME = "eval"
    every: int = number(0)
    rows: int = number(1)
    final_rows: int = number(0)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    NAME = "checkpoint"
    every: int = number(1)
    keep: int = number(1)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    NAME = "mesh"
    data: int = number(-1)
    fsdp: int = number(-1)
    context: int = number(-1)
    tensor: int = number(-1)

    def __post_init__(self):
        super().__post_init__()
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            self.require(size != 0, name, "it must be at least 1, or -1 for the devices that are left")
        free = [name for name, size in sizes.items() if size == -1]
        if len(free) > 1:
            self.require(False, free[1], f"only one axis may be -1, and mesh.{free[0]} is")

    def shape(self, num_devices: int) -> dict[str, int]:
        """Axis sizes with -1 filled in. Raises ConfigError if they do not multiply to num_devices."""
        sizes = dataclasses.asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if num_devices % fixed or (-1 not in sizes.values() and fixed != num_devices):
            name = max(sizes, key=lambda axis: sizes[axis])
            raise ConfigError(
                self.key(name), sizes[name], f"the axes of {sizes} must multiply to the {num_devices} devices"
            )
        return {name: num_devices // fixed if size == -1 else size for name, size in sizes.items()}


@dataclasses.dataclass(frozen=True)
class Config(Section):
    """One run. `resolve` makes it from a ConfigDict."""

    seed: int = number(0)
    init_from: str
    model: ModelConfig
    rope: RopeConfig
    lora: LoraConfig
    attention: AttentionConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    mesh: MeshConfig

    def __post_init__(self):
        super().__post_init__()
        for name in SIZES if not self.init_from else ():
            if not getattr(self.model, name):
                raise ConfigError(f"model.{name}", 0, "it must be at least 1, unless init_from names a checkpoint")
        rows, accumulation = self.data.batch_size, self.train.grad_accum_steps
        if rows % accumulation:
            raise ConfigError("train.grad_accum_steps", accumulation, f"it must divide data.batch_size={rows}")
        pairs = self.model.head_dim // 2
        for name in ("short_factors", "long_factors") if self.rope.scaling == "longrope" else ():
            factors = getattr(self.rope, name)
            if pairs and len(factors) != pairs:
                raise ConfigError(
                    f"rope.{name}", factors, f"it must hold model.head_dim/2={pairs} numbers, not {len(factors)}"
                )

    def completed(self, model: Mapping[str, Any] | None = None, rope: Mapping[str, Any] | None = None) -> "Config":
        """With what is left open (0, "", "auto") filled in: from a checkpoint's fields, or with a Llama's values.

        RoPE may be changed, which is how a model is taken to longer rows; the rest is the checkpoint's.

        Raises:
          ConfigError: a value of the model that is not left open differs from the checkpoint's.
        """
        given = dataclasses.asdict(self.model)
        for key, value in (model or {}).items():
            if given[key] not in (OPEN[key], value):
                raise ConfigError(f"model.{key}", given[key], f"the checkpoint in init_from has {value!r}")
        model = {key: given[key] or value for key, value in {"family": "llama", "norm_eps": 1e-5}.items()} | (
            model or {}
        )
        rope = {"theta": 10_000.0, "scaling": "none"} | dict(rope or {})
        if self.rope.scaling != "auto":
            rope = {key: rope[key] for key in ("theta", "local_theta") if key in rope}
        rope |= {key: value for key in ("theta", "local_theta") if (value := getattr(self.rope, key))}
        changes = {"model": dataclasses.replace(self.model, **model), "rope": dataclasses.replace(self.rope, **rope)}
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, with lists for tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def check_devices(self, num_devices: int) -> dict[str, int]:
        """The mesh's shape for that many devices. Raises ConfigError for shapes that do not divide."""
        shape = self.mesh.shape(num_devices)
        row_shards = shape["data"] * shape["fsdp"]

        def divides(key: str, value: int, parts: int, axes: str) -> None:
            if value % parts:
                raise ConfigError(key, value, f"it must be a multiple of {axes} = {parts}")

        micro = row_shards * self.train.grad_accum_steps
        divides("data.batch_size", self.data.batch_size, micro, "mesh.data * mesh.fsdp * train.grad_accum_steps")
        divides("data.seq_len", self.data.seq_len, shape["context"], "mesh.context")
        for key in ("num_heads", "num_kv_heads", "d_ff"):
            divides(f"model.{key}", getattr(self.model, key), shape["tensor"], "mesh.tensor")
        divides("model.d_model", self.model.d_model, shape["fsdp"], "mesh.fsdp")
        if self.model.vocab_size:
            divides("model.vocab_size", self.model.vocab_size, shape["tensor"], "mesh.tensor")
        return shape


SECTIONS = {field.name: field.type for field in dataclasses.fields(Config) if issubclass(field.type, Section)}


def resolve(config: Mapping[str, Any]) -> Config:
    """Nested mapping (a ConfigDict or the saved JSON) -> Config. Raises ConfigError naming the first fault."""
    _check_keys("", config, [field.name for field in dataclasses.fields(Config)])
    parts = {}
    for name, section in SECTIONS.items():
        if not isinstance(config[name], Mapping):
            raise ConfigError(name, config[name], "it must be a section with keys")
        _check_keys(f"{name}.", config[name], [field.name for field in dataclasses.fields(section)])
        parts[name] = section(**config[name])
    return Config(seed=config["seed"], init_from=config["init_from"], **parts)


def _check_keys(prefix: str, given: Mapping[str, Any], known: list[str]) -> None:
    for key in given:
        if key not in known:
            raise unknown_key(prefix + key, given[key], [prefix + name for name in known])
    for key in known:
        if key not in given:
            raise ConfigError(prefix + key, None, "the key is missing; start from configs/common.py")


def unknown_key(key: str, value: Any, known: list[str]) -> ConfigError:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean config.{close[0]}? " if close else ""
    there_are = f"there are {', '.join(known)}" if known else "what it is said to be part of is a value"
    return ConfigError(key, value, f"there is no such key; {hint}{there_are}")
