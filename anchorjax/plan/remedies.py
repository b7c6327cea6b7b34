"""What to change in a configuration whose step does not fit, verified by compiling: the first change that is enough.

    remat         keep less of a layer for the backward pass: model.remat
    accumulation  more, smaller micro-batches: train.grad_accum_steps
    context       devices that share rows share tokens instead, weights stay cut as finely, and micro-batches get
                  smaller: mesh.context, mesh.fsdp, mesh.shard_weights_over, train.grad_accum_steps
    offload       what is kept lies in the host's memory: model.remat=offload
    tiled MLP     the feed-forward layer takes some tokens at a time: model.ffn_chunk

They are tried in this order, each on top of those before it that saved memory and that the host's memory has room for.
The first ones cost computation, and the later ones communication, transfers and latency. What is far from fitting by
estimate (`estimate`) is not compiled.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from anchorjax.config import Config
from anchorjax.errors import ConfigError
from anchorjax.plan import estimate, exchanges, step
from anchorjax.plan.memory import Memory
from anchorjax.plan.trial import Trial

Changes = Mapping[str, Any]
CHUNKS = 8192, 2048  # tokens of a device that the feed-forward layer takes at once
# An estimate above so many times the memory is not compiled: it is within 15% of compiled steps (tests/plan).
HOPELESS = 1.2


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A remedy that was tried, or could not be.

    Attributes:
      changes: of the configuration that was asked for.
      trial: None if nothing was compiled: `estimated` is too large, or `why_not` says why.
    """

    remedy: str
    changes: Changes = dataclasses.field(default_factory=dict)
    trial: Trial | None = None
    estimated: Memory | None = None
    why_not: str = ""

    @property
    def hbm_bytes(self) -> float:
        """What the step needs of a device, compiled or else estimated; infinite if neither is known."""
        if self.trial:
            return self.trial.hbm_bytes
        return self.estimated.total if self.estimated else float("inf")

    @property
    def host_bytes(self) -> float:
        """The same of the host's memory; 0 if neither is known."""
        if self.trial:
            return self.trial.host_bytes
        return self.estimated.host if self.estimated else 0


def search(first: Trial, compile: Callable[[Changes], Trial]) -> Iterator[Attempt]:
    """Tries remedies until one fits, and yields each attempt.

    Args:
      first: of the configuration as it is, which does not fit.
      compile: makes the trial of some changed keys.
    """
    kept, least = {}, first.hbm_bytes
    for remedy, levels in REMEDIES.items():
        config = step.changed(first.config, kept)
        found, why_not = levels(config, config.check_devices(first.mesh.size))
        if not found:
            yield Attempt(remedy, why_not=why_not)
        for changes in found:
            attempt = _tried(remedy, {**kept, **changes}, first, compile)
            yield attempt
            if attempt.trial and attempt.trial.fits:
                return
            if attempt.hbm_bytes < least and attempt.host_bytes <= first.hardware.host_bytes:
                kept, least = attempt.changes, attempt.hbm_bytes


def _tried(remedy: str, changes: Changes, first: Trial, compile: Callable[[Changes], Trial]) -> Attempt:
    try:
        config, hardware = step.changed(first.config, changes), first.hardware
        expected = estimate.memory(config, config.check_devices(first.mesh.size))
        if expected.total > HOPELESS * hardware.hbm_bytes or expected.host > HOPELESS * hardware.host_bytes:
            return Attempt(remedy, changes, estimated=expected)
        return Attempt(remedy, changes, compile(changes))
    except ConfigError as error:
        return Attempt(remedy, changes, why_not=str(error))


def remat(config: Config, shape: Mapping[str, int]) -> tuple[list[Changes], str]:
    policies = ["none", "attention", "full"]
    if config.model.remat not in policies[:-1]:
        return [], f"model.remat={config.model.remat} keeps as little as there is"
    later = policies[policies.index(config.model.remat) + 1 :]
    return [{"model.remat": policy} for policy in later], ""


def accumulation(config: Config, shape: Mapping[str, int]) -> tuple[list[Changes], str]:
    """Micro-batches of ever fewer rows, down to one row of a device."""
    parts = config.train.grad_accum_steps
    rows = config.data.batch_size // (shape["data"] * shape["fsdp"] * parts)
    more = [k for k in range(2, rows + 1) if rows % k == 0]
    return [{"train.grad_accum_steps": parts * k} for k in more], "a device has one row of a micro-batch already"


def context(config: Config, shape: Mapping[str, int]) -> tuple[list[Changes], str]:
    """Devices along `fsdp` become devices along `context`, and micro-batches as many times more.

    Without more micro-batches fewer groups of devices would share the same rows, and a device have as many tokens.
    """
    fsdp = shape["fsdp"]
    found = [
        {
            "mesh.fsdp": fsdp // k,
            "mesh.context": shape["context"] * k,
            "mesh.shard_weights_over": "fsdp_context",
            "train.grad_accum_steps": config.train.grad_accum_steps * k,
        }
        for k in range(2, fsdp + 1)
        if fsdp % k == 0
    ]
    return found, "mesh.fsdp=1 leaves no devices to share a row's tokens"


def offload(config: Config, shape: Mapping[str, int]) -> tuple[list[Changes], str]:
    if config.model.remat == "offload":
        return [], "model.remat=offload is set already"
    return [{"model.remat": "offload"}], ""


def tiled_mlp(config: Config, shape: Mapping[str, int]) -> tuple[list[Changes], str]:
    at_once = exchanges.tokens(config, shape)
    if config.model.ffn_chunk:
        at_once = min(at_once, config.model.ffn_chunk)
    chunks = [chunk for chunk in CHUNKS if chunk < at_once]
    return [{"model.ffn_chunk": chunk} for chunk in chunks], f"the layer takes {at_once} tokens at once already"


REMEDIES: dict[str, Callable[[Config, Mapping[str, int]], tuple[list[Changes], str]]] = {
    "remat": remat,
    "accumulation": accumulation,
    "context": context,
    "offload": offload,
    "tiled MLP": tiled_mlp,
}
