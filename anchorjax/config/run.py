"""`Config`, one run's resolved configuration, and `resolve`, the only way to one.

Every error is a `ConfigError`, whose one line names the key, the value and what is allowed.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from anchorjax.config import focus
from anchorjax.config.data import DataConfig
from anchorjax.config.focus import FocusConfig
from anchorjax.config.keys import Key, Section, key
from anchorjax.config.model import OPEN, SIZES, LoraConfig, ModelConfig, RopeConfig
from anchorjax.config.names import unknown_key
from anchorjax.config.training import (
    AttentionConfig,
    CheckpointConfig,
    EvalConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from anchorjax.errors import ConfigError

BY_CONTEXT = ("exact", "longce")  # objectives whose weights depend on how far targets see


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One run. `resolve` makes it from a recipe's ConfigDict or a saved config.json."""

    seed: int = key(0, "seed of initial weights and data order; the same seed gives the same run, bit for bit", low=0)
    init_from: str = key(
        "", "a Hugging Face directory, a run's, or one that anchorjax convert wrote; empty: random weights"
    )
    model: ModelConfig
    rope: RopeConfig
    lora: LoraConfig
    focus: FocusConfig
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
        warmup, decay, steps = self.optimizer.warmup_steps, self.optimizer.decay_steps, self.train.steps
        if decay and warmup + decay > steps:
            allowed = f"with optimizer.warmup_steps={warmup} it must be at most {max(0, steps - warmup)}"
            raise ConfigError("optimizer.decay_steps", decay, f"{allowed}: the run has train.steps={steps}")
        moments = self.optimizer.moments_on, self.optimizer.moments_dtype, self.model.param_dtype
        if moments == ("host", "weights", "bfloat16"):
            allowed = "with model.param_dtype='bfloat16' and optimizer.moments_on='host' it must be float32 or bfloat16"
            raise ConfigError("optimizer.moments_dtype", "weights", allowed)
        tail, T = self.train.exact_tail, self.data.seq_len
        if tail > T:
            raise ConfigError(
                "train.exact_tail", tail, f"it must be at most data.seq_len={T}: no target sees more keys"
            )
        if self.attention.logit_scale != "none":
            self._check_logit_scale()
        self._check_windows()
        if self.train.objective == "longce":
            self._check_longce()
        if self.focus.chunk:
            focus.check(self)
        pairs = self.model.head_dim // 2
        for name in ("short_factors", "long_factors") if self.rope.scaling == "longrope" else ():
            factors = getattr(self.rope, name)
            if pairs and len(factors) != pairs:
                raise ConfigError(
                    f"rope.{name}", factors, f"it must hold model.head_dim/2={pairs} numbers, not {len(factors)}"
                )

    def _check_logit_scale(self) -> None:
        name, first, layers = self.attention.logit_scale, self.attention.logit_scale_from, self.model.num_layers
        if layers and first >= layers:
            allowed = f"it must be below model.num_layers={layers}: no layer would be scaled"
            raise ConfigError("attention.logit_scale_from", first, allowed)
        if self.rope.dtype != "float32":
            allowed = f"with attention.logit_scale={name} it must be float32: the scale is part of cosines and sines"
            raise ConfigError("rope.dtype", self.rope.dtype, allowed)

    def _check_windows(self) -> None:
        schedule, last, steps = self.data.window_schedule, self.data.window_steps, self.train.steps
        if schedule == "none":
            return
        if last >= steps:
            allowed = f"it must be below train.steps={steps}: otherwise no step trains on whole rows"
            raise ConfigError("data.window_steps", last, allowed)
        if self.train.objective in BY_CONTEXT:
            allowed = f"it must be none with train.objective={self.train.objective}, which weights targets by context"
            raise ConfigError("data.window_schedule", schedule, allowed)

    def _check_longce(self) -> None:
        T, context, stride = self.data.seq_len, self.train.longce_context, self.train.longce_stride
        if context >= T - 1:
            allowed = f"it must be less than data.seq_len - 1 = {T - 1}: no document in a row would be longer"
            raise ConfigError("train.longce_context", context, allowed)
        if context + stride > T:
            allowed = f"with train.longce_context={context} it must be at most {T - context}"
            raise ConfigError("train.longce_stride", stride, f"{allowed}: a window is no longer than data.seq_len={T}")

    @property
    def is_frozen(self) -> bool:
        """Whether adapters alone are trained, those of LoRA or of FocusLLM."""
        return self.lora.rank > 0 or self.focus.chunk > 0

    @property
    def max_position(self) -> int:
        """Positions of the model, which RoPE's tables and length-dependent scalings are made for."""
        return max_position(vars(self.data))

    def completed(self, model: Mapping[str, Any] | None = None, rope: Mapping[str, Any] | None = None) -> "Config":
        """A copy in which values that are left open (0, "", "auto") come from a checkpoint's fields, or are Llama's.

        RoPE may differ from the checkpoint's, which is how a model is extended to longer rows; the rest may not.

        Raises:
          ConfigError: a value of the model is not left open and differs from the checkpoint's.
        """
        given = dataclasses.asdict(self.model)
        for name, value in (model or {}).items():
            if given[name] not in (OPEN[name], value):
                raise ConfigError(f"model.{name}", given[name], f"the checkpoint in init_from has {value!r}")
        llama = {"family": "llama", "norm_eps": 1e-5}
        model = {name: given[name] or value for name, value in llama.items()} | dict(model or {})
        rope = {"theta": 10_000.0, "scaling": "none"} | dict(rope or {})
        if self.rope.scaling != "auto":
            rope = {name: rope[name] for name in ("theta", "local_theta") if name in rope}
        rope |= {name: value for name in ("theta", "local_theta") if (value := getattr(self.rope, name))}
        attention = self.attention
        if attention.logit_scale != "none" and not attention.logit_scale_length:
            attention = dataclasses.replace(attention, logit_scale_length=self.data.seq_len)
        changes = {"model": dataclasses.replace(self.model, **model), "rope": dataclasses.replace(self.rope, **rope)}
        return dataclasses.replace(self, attention=attention, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The nested dictionaries of config.json, with lists for tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def check_devices(self, num_devices: int) -> dict[str, int]:
        """The mesh's shape for that many devices. Raises ConfigError for sizes that do not divide over it."""
        shape = self.mesh.shape(num_devices)
        row_shards = shape["data"] * shape["fsdp"]

        def divides(name: str, value: int, parts: int, axes: str) -> None:
            if value % parts:
                raise ConfigError(name, value, f"it must be a multiple of {axes} = {parts}")

        micro = row_shards * self.train.grad_accum_steps
        divides("data.batch_size", self.data.batch_size, micro, "mesh.data * mesh.fsdp * train.grad_accum_steps")
        divides("data.seq_len", self.data.seq_len, shape["context"], "mesh.context")
        for name in ("num_heads", "num_kv_heads", "d_ff"):
            divides(f"model.{name}", getattr(self.model, name), shape["tensor"], "mesh.tensor")
        axes = ["fsdp", "tensor"] + ["context"] * (self.mesh.shard_weights_over == "fsdp_context")
        shards, names = math.prod(shape[axis] for axis in axes), " * ".join(f"mesh.{axis}" for axis in axes)
        divides("model.d_model", self.model.d_model, shards, names)
        return shape


SECTIONS = {field.name: field.type for field in dataclasses.fields(Config) if issubclass(field.type, Section)}
KEYS: dict[str, Key] = {each.name: each for part in (Config, *SECTIONS.values()) for each in part.declared()}


def defaults() -> dict[str, Any]:
    """Every key with its default, as nested dictionaries."""
    top, parts = Config.declared(), {name: section.declared() for name, section in SECTIONS.items()}
    leaves = {each.name: each.default for each in top}
    return leaves | {
        name: {each.name.removeprefix(f"{name}."): each.default for each in keys} for name, keys in parts.items()
    }


def max_position(data: Mapping[str, Any]) -> int:
    """`Config.max_position` of a run's section "data", as its config.json has it; 0 if that names no length."""
    return data.get("max_position") or data.get("seq_len") or 0


def resolve(config: Mapping[str, Any]) -> Config:
    """Makes a Config of nested mappings with all keys (a ConfigDict, or a saved JSON file).

    Raises:
      ConfigError: a key is unknown, missing, or has an impossible value; the first one found is named.
    """
    _check_names("", config, [field.name for field in dataclasses.fields(Config)])
    parts = {}
    for name, section in SECTIONS.items():
        if not isinstance(config[name], Mapping):
            raise ConfigError(name, config[name], "it must be a section with keys")
        _check_names(f"{name}.", config[name], [field.name for field in dataclasses.fields(section)])
        parts[name] = section(**config[name])
    return Config(seed=config["seed"], init_from=config["init_from"], **parts)


def _check_names(prefix: str, given: Mapping[str, Any], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise unknown_key(prefix + name, given[name], [prefix + each for each in known])
    for name in known:
        if name not in given:
            raise ConfigError(prefix + name, None, "the key is missing; start from anchorjax.config.base()")
