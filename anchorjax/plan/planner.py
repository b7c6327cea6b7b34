"""The plan of a run on hardware that is not here.

    targets.prepare()  # before JAX is first used
    made = planner.plan(config, "v5p:4x4x4", given=["--config=llama3_8b_128k_anchor"])
    made.fits, made.to_dict(), show.text(made)

`to_dict` is what `--json` prints. Bytes are those of one JAX device:

    target, devices, chips   the hardware
    mesh                     devices along each axis
    fits                     whether the step fits, with the `changes`
    fits_as_given            whether it fits without them
    changes                  keys to change; {} if there is nothing to change, or if nothing helps
    hbm_bytes, capacity      what the step needs of a device's memory (compiled), and what there is
    hbm_by_kind              the same by what takes it, with the fields of `memory.Memory`; null if the compiler gave up
    host_bytes,              the same of the host's memory, for one device
    host_capacity
    attempts                 remedies in the order in which they were tried: remedy and changes with fits, hbm_bytes,
                             host_bytes, refused (by the compiler) and compile_seconds; or, if nothing was compiled,
                             with estimated_hbm_bytes and estimated_host_bytes, or why_not
    search                   [] without --search: candidates in the order of their estimates, with changes, estimated
                             (hbm_bytes and step_seconds), and fits, hbm_bytes, step_seconds (null if it does not fit)
                             and compile_seconds of what was compiled. The fastest that fits is the plan
    tokens_per_step          of all devices
    exchanged                bytes that a device receives from others in a step (compiled), by axes of the mesh:
                             {"fsdp": bytes, "context": bytes, ...}; {} if nothing fits. Those of a ring are by formula
    exchanged_by_formula     the same from the configuration's sizes (anchorjax/plan/exchanges.py)
    step_seconds             modelled; null if nothing fits, and so are the next five
    step_seconds_low, _high  with all exchanges beside computation, and with none
    step_parts               what `step_seconds` adds up, with the fields of `work.Part`
    mfu, mfu_causal          model FLOPs of the visible pairs over the peak, and with each row as one document
    assumptions              lines: every number behind the seconds that is neither compiled, counted nor a maker's
    run                      steps, tokens, hours, chip_hours and price of the whole run (modelled), without evaluations
                             and saves; price is null without --price
    documents                rows of the run's own packer (counted), with the fields of `documents.Documents`
    launch                   lines to type on the hardware, with the changes; null if nothing fits
    compile_seconds          of the step as given
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchorjax.checkpoints.pretrained import download
from anchorjax.config import SIZES, Config
from anchorjax.data import load_tokenizer
from anchorjax.errors import ConfigError, UsageError
from anchorjax.plan import command, comparison, documents, exchanges, remedies, trial
from anchorjax.plan import hardware as hardwares
from anchorjax.plan import time as times
from anchorjax.plan.comparison import Contender
from anchorjax.plan.documents import Documents
from anchorjax.plan.hardware import HARDWARE, Hardware
from anchorjax.plan.memory import Memory
from anchorjax.plan.remedies import Attempt
from anchorjax.plan.time import Cost, StepTime
from anchorjax.plan.timed import Timed, timed
from anchorjax.plan.trial import Trial
from anchorjax.targets import Topology
from anchorjax.training import setup


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found out.

    Attributes:
      given: arguments of `anchorjax train` that make the run.
      first: the configuration as it is.
      attempts: what was tried because it does not fit.
      contenders: of a search.
      timed: what fits, and is fastest of that; or `first` if nothing does.
      price: of a chip and hour.
    """

    target: str
    given: tuple[str, ...]
    hardware: Hardware
    first: Trial
    attempts: tuple[Attempt, ...]
    contenders: tuple[Contender, ...]
    timed: Timed
    price: float | None

    @property
    def chosen(self) -> Trial:
        return self.timed.trial

    @property
    def documents(self) -> Documents:
        return self.timed.documents

    @property
    def time(self) -> StepTime | None:
        """None if nothing fits."""
        return self.timed.time

    @property
    def fits(self) -> bool:
        return self.chosen.fits

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.chosen.config.data.batch_size * self.chosen.config.data.seq_len

    @property
    def exchanged(self) -> dict[str, float]:
        """Bytes that a device receives in a step by axis of the mesh, compiled; a ring's are by formula."""
        return exchanges.by_axis(self.time.exchanged) if self.time else {}

    @property
    def exchanged_by_formula(self) -> dict[str, float]:
        return exchanges.by_axis(exchanges.formula(self.chosen.config, self.chosen.mesh.shape))

    @property
    def devices(self) -> int:
        return self.chosen.mesh.size

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.chosen.config.train.steps

    @property
    def cost(self) -> Cost | None:
        if self.time is None:
            return None
        return times.cost(self.time.seconds, self.steps, self.devices, self.hardware, self.price)

    @property
    def launch(self) -> str | None:
        """None if nothing fits."""
        if not self.fits:
            return None
        given = [*self.given, *command.flags(self.chosen.changes)]
        return command.launch(self.chosen.config, given, self.target, self.hardware)

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "devices": self.devices,
            "chips": self.devices // self.hardware.devices_per_chip,
            "mesh": dict(self.chosen.mesh.shape),
            "fits": self.fits,
            "fits_as_given": self.first.fits,
            "changes": dict(self.chosen.changes),
            "hbm_bytes": self.chosen.hbm_bytes,
            "hbm_by_kind": by_kind(self.chosen.memory),
            "capacity": self.hardware.hbm_bytes,
            "host_bytes": self.chosen.host_bytes,
            "host_capacity": self.hardware.host_bytes,
            "attempts": [_attempt(one) for one in self.attempts],
            "search": [_contender(one) for one in self.contenders],
            "tokens_per_step": self.tokens,
            "exchanged": self.exchanged,
            "exchanged_by_formula": self.exchanged_by_formula,
            "documents": dataclasses.asdict(self.documents),
            **self._time(),
            "launch": self.launch,
            "compile_seconds": self.first.seconds,
        }

    def _time(self) -> dict[str, Any]:
        made = self.time
        names = "step_seconds", "step_seconds_low", "step_seconds_high", "step_parts", "mfu", "mfu_causal"
        if made is None:
            return dict.fromkeys([*names, "assumptions", "run"])
        parts = [dataclasses.asdict(part) for part in made.parts]
        values = made.seconds, made.low, made.high, parts, made.mfu, made.mfu_causal
        run = {"steps": self.steps, "tokens": self.steps * self.tokens, **dataclasses.asdict(self.cost)}
        return {**dict(zip(names, values, strict=True)), "assumptions": list(made.assumptions), "run": run}


def plan(
    config: Config,
    target: str,
    given: Sequence[str],
    lengths: str = "",
    price: float | None = None,
    best: int = 0,
) -> Plan:
    """Compiles the configuration's step, and remedies if it does not fit. Says on stderr what it does.

    Args:
      config: as `overrides.parse` returns it.
      target: a name of `targets.Topology`.
      given: arguments of `anchorjax train` that make it, `--config=RECIPE` among them.
      lengths: of the documents, as `documents.lengths_of` takes them.
      price: of a chip and hour.
      best: candidates of a search to compile, in place of remedies; 0: no search.

    Raises:
      UsageError: unknown hardware, or lengths that are not there.
      DataError: lengths that cannot be read.
      WeightsError: the checkpoint in `init_from` cannot be used.
      ConfigError: a configuration that the hardware does not take, or whose sizes are not known.
      MissingCompiler: the compiler for the hardware is not installed.
    """
    hardware, config = find(target), completed(with_slices(config, target))
    given_lengths = documents.lengths_of(lengths, config)
    compile = functools.partial(trial.run, config, target, hardware)
    first = compile({})
    attempts = () if first.fits or best else tuple(remedies.search(first, compile))
    fitting = [one.trial for one in attempts if one.trial and one.trial.fits]
    found = tuple(comparison.contenders(first, given_lengths, best, compile)) if best else ()
    made = timed((fitting or [first])[0], given_lengths)
    fastest = min([made, *(one.timed for one in found)], key=lambda one: one.seconds)
    return Plan(target, tuple(given), hardware, first, attempts, found, fastest, price)


def find(target: str) -> Hardware:
    """Raises UsageError with all known hardware, if it is none of that."""
    try:
        if Topology.parse(target).target in HARDWARE:
            return hardwares.of(target)
        fault = "it must be an accelerator"
    except ValueError as error:
        fault = str(error).partition("; there are ")[0]
    raise UsageError("\n".join([f"--target={target} is not allowed: {fault}", *hardwares.table()]))


def with_slices(config: Config, target: str) -> Config:
    """With `mesh.slices` of the target. Raises ConfigError if it is set to another number."""
    slices = Topology.parse(target).slices
    if config.mesh.slices not in (1, slices):
        raise ConfigError("mesh.slices", config.mesh.slices, f"{target} has {slices}")
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, slices=slices))


def completed(config: Config) -> Config:
    """With all sizes of the model, as training completes it; a checkpoint that decides none need not be there.

    Raises:
      ConfigError: the checkpoint in `init_from` is not there, and the sizes are its own.
      WeightsError: it cannot be used.
    """
    if config.focus.chunk:
        allowed = "it must be 0: the planner does not know the two passes of FocusLLM"
        raise ConfigError("focus.chunk", config.focus.chunk, allowed)
    is_there = Path(config.init_from).expanduser().is_dir()
    missing = [f"model.{name}" for name in SIZES if not getattr(config.model, name)]
    if config.init_from and not is_there and missing:
        allowed = f"there is no such directory, and {', '.join(missing)} must come from it{download(config.init_from)}"
        raise ConfigError("init_from", config.init_from, allowed)
    pretrained = setup.find_pretrained(config) if is_there else None
    config = setup.complete(config, pretrained)
    if config.model.vocab_size:
        return config
    return setup.with_vocabulary(config, load_tokenizer(config.data), pretrained)


def by_kind(memory: Memory | None) -> dict[str, int] | None:
    """Bytes of a device by kind."""
    if memory is None:
        return None
    return {name: count for name, count in dataclasses.asdict(memory).items() if name != "host"}


def _contender(one: Contender) -> dict[str, Any]:
    trial, time = one.timed.trial, one.timed.time
    return {
        "changes": dict(trial.changes),
        "estimated": {"hbm_bytes": one.candidate.memory.total, "step_seconds": one.candidate.time.seconds},
        "fits": trial.fits,
        "hbm_bytes": trial.hbm_bytes,
        "step_seconds": time.seconds if time else None,
        "compile_seconds": trial.seconds,
    }


def _attempt(one: Attempt) -> dict[str, Any]:
    known = {"remedy": one.remedy, "changes": dict(one.changes)}
    if one.estimated:
        return {**known, "estimated_hbm_bytes": one.estimated.total, "estimated_host_bytes": one.estimated.host}
    if one.trial is None:
        return {**known, "why_not": one.why_not}
    return {
        **known,
        "fits": one.trial.fits,
        "hbm_bytes": one.trial.hbm_bytes,
        "host_bytes": one.trial.host_bytes,
        "refused": bool(one.trial.refused),
        "compile_seconds": one.trial.seconds,
    }
