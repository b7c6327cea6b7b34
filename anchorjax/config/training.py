"""The sections that describe how a run computes: attention, optimizer, steps, evaluation, saves and the mesh."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from anchorjax.config.keys import Section, key
from anchorjax.errors import ConfigError
from anchorjax.types import CONTEXT_LAYOUTS, CONTEXT_STRATEGIES, IMPLEMENTATIONS, OBJECTIVES, VARIANTS

LOGIT_SCALES = ("entropy_abf", "scalable_softmax")


@dataclasses.dataclass(frozen=True)
class AttentionConfig(Section):
    """An implementation and its tiles change the order of floating-point sums: losses agree closely, not bitwise."""

    NAME = "attention"
    implementation: str = key(
        "auto",
        "code that computes attention (anchorjax/attention); auto: the fastest for these devices",
        choices=("auto", *IMPLEMENTATIONS),
        resume="free",
    )
    q_tile: int = key(
        0,
        "queries of a tile: small tiles skip more, large ones run faster; 0: the implementation's table",
        low=0,
        high=8192,
        resume="free",
    )
    kv_tile: int = key(0, "keys of a tile; 0: the implementation's table", low=0, high=8192, resume="free")
    variant: str = key("plain", "how layers attend: a module of anchorjax/models/variants", choices=VARIANTS)
    logit_scale: str = key(
        "none",
        "what multiplies attention's logits, with n as logit_scale_by says. entropy_abf: max(log n / log "
        "logit_scale_length, 1) (arXiv 2401.07004); scalable_softmax: s log n, s learned by head (arXiv 2501.19399)",
        choices=("none", *LOGIT_SCALES),
    )
    logit_scale_by: str = key(
        "position",
        "n. position: the query's RoPE position + 1, as published; visible: the keys that it sees in its document, its "
        "window and the anchor",
        choices=("position", "visible"),
        used_with=("logit_scale", LOGIT_SCALES),
    )
    logit_scale_length: int = key(
        0,
        "length that the checkpoint was trained on, at which logits are its own; 0: the checkpoint's, or data.seq_len "
        "without init_from",
        low=0,
        used_with=("logit_scale", LOGIT_SCALES),
    )
    logit_scale_from: int = key(
        2,
        "first layer, counted from 0, whose logits are scaled; Entropy-ABF leaves two out",
        low=0,
        used_with=("logit_scale", LOGIT_SCALES),
    )

    def __post_init__(self):
        super().__post_init__()
        allowed = "it must be at least 2, as scales go by its logarithm, or 0 for the checkpoint's"
        self.require(self.logit_scale_length != 1, "logit_scale_length", allowed)

    @classmethod
    def of_model(cls, section: Mapping[str, Any]) -> "AttentionConfig":
        """What is part of the model, from a run's section; implementation and tiles are left to the machine.

        Raises:
          ConfigError: a value that does not exist here, as a variant of another version.
        """
        fixed = [each.field for each in cls.declared() if each.resume == "fixed"]
        return cls(**{name: section[name] for name in fixed if name in section})


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    NAME = "optimizer"
    learning_rate: float = key(1e-3, "largest learning rate", low=0, high=10, open_low=True)
    schedule: str = key(
        "cosine",
        "learning rate after the warm-up; wsd: constant, and a linear decay at the end (arXiv 2404.06395)",
        choices=("constant", "cosine", "linear", "wsd"),
    )
    warmup_steps: int = key(20, "steps in which the learning rate rises linearly", low=0)
    decay_steps: int = key(
        0,
        "wsd: steps of the decay at the end; 0: a tenth of train.steps, or what the warm-up leaves of it",
        low=0,
        used_with=("schedule", "wsd"),
    )
    final_fraction: float = key(0.1, "share of learning_rate at the end (cosine, linear, wsd)", low=0, high=1)
    beta1: float = key(0.9, "decay of the first moment (AdamW)", low=0, high=0.9999)
    beta2: float = key(0.95, "decay of the second moment (AdamW)", low=0, high=0.999999)
    eps: float = key(1e-8, "added to the root of the second moment (AdamW)", low=0, high=1, open_low=True)
    weight_decay: float = key(0.1, "weight decay of matrices, not of norm scales", low=0, high=1)
    clip_norm: float = key(1.0, "largest global norm of the gradient; 0: no clipping", low=0)
    moments_dtype: str = key(
        "weights",
        "dtype in which both moments rest (AdamW); weights: as the weights do; bfloat16 is rounded stochastically",
        choices=("weights", "float32", "bfloat16"),
    )
    moments_on: str = key(
        "device",
        "memory in which both moments rest; host: each layer's come to the device for their update",
        choices=("device", "host"),
        resume="free",
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    NAME = "train"
    steps: int = key(100, "optimizer steps of the whole run", low=1, resume="grow")
    grad_accum_steps: int = key(
        1, "micro-batches of batch_size / grad_accum_steps rows in one optimizer step, to save memory", low=1
    )
    objective: str = key(
        "mean",
        "weights of targets: all alike, more to those that see a long context (exact, arXiv 2605.10544), or more to "
        "those that a long context makes easier to predict (longce, arXiv 2410.23771)",
        choices=OBJECTIVES,
    )
    exact_alpha: float = key(
        0.15,
        "extra weight of the targets in the tail, on average (exact)",
        low=0,
        high=100,
        used_with=("objective", "exact"),
    )
    exact_gamma: float = key(
        0.5,
        "power of the inverse frequency by which the tail shares it (exact)",
        low=0,
        high=1,
        used_with=("objective", "exact"),
    )
    exact_tail: int = key(
        0,
        "visible keys at which the tail begins, rounded up to a power of two (exact); 0: a quarter of data.seq_len",
        low=0,
        used_with=("objective", "exact"),
    )
    longce_context: int = key(
        4096,
        "least tokens of a short context; targets with fewer tokens of context have weight 1 (longce)",
        low=1,
        used_with=("objective", "longce"),
    )
    longce_stride: int = key(
        1024,
        "targets that share a short context, which has up to so many tokens more; smaller costs more (longce)",
        low=1,
        used_with=("objective", "longce"),
    )
    longce_limit: float = key(
        5.0,
        "largest weight of a target (longce)",
        low=0,
        high=1000,
        open_low=True,
        used_with=("objective", "longce"),
    )
    loss_chunk: int = key(1024, "tokens of a device whose logits exist at once", low=1)
    log_every: int = key(10, "steps between lines of metrics.jsonl, which hold their mean loss", low=1, resume="free")
    tensorboard: bool = key(True, "write TensorBoard events beside metrics.jsonl", resume="free")
    compiler_flags: str = key(
        "auto",
        "options of the compiler of accelerators, which let collectives run beside computation. auto: those of "
        "anchorjax/compiler_flags.py for the devices; none: the compiler's defaults",
        choices=("auto", "none"),
        resume="free",
    )
    timeout_s: float = key(
        1800.0,
        "seconds that reading the first weights, a step, a save or an evaluated batch may take in a job of several "
        "processes, with compilation; then the process ends and prints its stacks, as one that is stuck would hold up "
        "all; 0: no limit",
        low=0,
        resume="free",
    )
    peak_tflops: float = key(
        0.0,
        "TFLOP/s of a device, for MFU; 0: the table in anchorjax/models/flops.py, if it has the device",
        low=0,
        resume="free",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section):
    NAME = "eval"
    every: int = key(100, "steps between held-out losses; 0: only at the end", low=0, resume="free")
    rows: int = key(8, "rows of each held-out loss during training", low=1, resume="free")
    final_rows: int = key(
        0, "rows of the held-out loss at the end; 0: the whole validation split", low=0, resume="free"
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    NAME = "checkpoint"
    every: int = key(100, "steps between saves; the last step is always saved", low=1, resume="free")
    keep: int = key(2, "newest checkpoints that are kept", low=1, resume="free")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """Devices along each axis, whose product is the device count, and how they share the work.

    An axis of -1, at most one, takes the devices that are left.

    The mesh changes the order of floating-point sums: losses agree closely, not bitwise.
    """

    NAME = "mesh"
    data: int = key(
        1, "devices that share the rows and hold whole weights; -1: all that are left", low=-1, resume="free"
    )
    fsdp: int = key(
        -1,
        "devices that share the rows and the weights, which are gathered layer by layer; -1: all that are left",
        low=-1,
        resume="free",
    )
    context: int = key(1, "devices that share the tokens of a row; -1: all that are left", low=-1, resume="free")
    tensor: int = key(
        1, "devices that share heads, feed-forward and embeddings; -1: all that are left", low=-1, resume="free"
    )
    shard_weights_over: str = key(
        "fsdp",
        "axes that share the weights and their moments. fsdp; fsdp_context: also context, for less memory",
        choices=("fsdp", "fsdp_context"),
        resume="free",
    )
    gradient_dtype: str = key(
        "auto",
        "dtype in which devices exchange and add up weight gradients; auto: model.compute_dtype",
        choices=("auto", "bfloat16", "float32"),
        resume="free",
    )
    slices: int = key(
        1,
        "TPU slices of the job, which only the hosts' network joins; they split data, and fsdp by what is left",
        low=1,
        resume="free",
    )
    context_strategy: str = key(
        "all_gather",
        "what the devices along mesh.context exchange. all_gather: keys and values; ring: those that a device "
        "needs; ulysses: tokens for heads",
        choices=CONTEXT_STRATEGIES,
        resume="free",
    )
    context_layout: str = key(
        "documents",
        "which tokens of a row each device along mesh.context holds, unless each attends from all. documents: chunks "
        "of even work by the row's documents; zigzag: an early and a late stretch, even for rows of one document; "
        "contiguous: one stretch",
        choices=CONTEXT_LAYOUTS,
        resume="free",
    )
    ulysses_head_chunks: int = key(
        1,
        "parts of the heads that are exchanged and attended one after another; more take less memory (ulysses)",
        low=1,
        resume="free",
        used_with=("context_strategy", "ulysses"),
    )

    def __post_init__(self):
        super().__post_init__()
        sizes = self.sizes
        for name, size in sizes.items():
            self.require(size != 0, name, "it must be at least 1, or -1 for the devices that are left")
        free = [name for name, size in sizes.items() if size == -1]
        if len(free) > 1:
            self.require(False, free[1], f"only one axis may be -1, and mesh.{free[0]} is")

    @property
    def sizes(self) -> dict[str, int]:
        """The axes as they were given."""
        return {name: getattr(self, name) for name in ("data", "fsdp", "context", "tensor")}

    def shape(self, num_devices: int) -> dict[str, int]:
        """Axis sizes with -1 filled in.

        Raises:
          ConfigError: they do not multiply to num_devices, or the slices divide neither `data` nor `fsdp`.
        """
        sizes = self.sizes
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if num_devices % fixed or (-1 not in sizes.values() and fixed != num_devices):
            name = max(sizes, key=lambda axis: sizes[axis])
            raise ConfigError(
                self.path(name), sizes[name], f"the axes of {sizes} must multiply to the {num_devices} devices"
            )
        shape = {name: num_devices // fixed if size == -1 else size for name, size in sizes.items()}
        along_fsdp = self.slices // math.gcd(self.slices, shape["data"])
        rows = f"mesh.data={shape['data']} and mesh.fsdp={shape['fsdp']}"
        self.require(shape["fsdp"] % along_fsdp == 0, "slices", f"slices must divide {rows}, along which they lie")
        return shape
