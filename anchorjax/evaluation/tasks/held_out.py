"""A run's own held-out loss: the validation split packed exactly as in training."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax

from anchorjax import data, processes
from anchorjax.checkpoints.orbax import Checkpoints, weights_id
from anchorjax.config import AttentionConfig, Config, MeshConfig, load_config, resolve
from anchorjax.errors import ConfigError, WorkdirError
from anchorjax.evaluation import options
from anchorjax.evaluation.record import Record
from anchorjax.evaluation.runner import Way, fill
from anchorjax.evaluation.task import Example
from anchorjax.evaluation.tasks import perplexity as tables
from anchorjax.sharding import count_slices, rows_here
from anchorjax.training.evaluate import Evaluator
from anchorjax.training.setup import Setup, check_attention
from anchorjax.training.state import TrainState


def load(workdir: Path) -> Setup:
    """Raises UserError: there is no run, or it cannot be set up on these devices."""
    fields = load_config(workdir)
    if "data" not in fields:
        raise WorkdirError(f"{workdir} is a model's directory and no run, without a split of its own: give --text")
    return Setup.make(_fit_devices(resolve(fields), jax.device_count()), workdir)


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint of a run, as the record names it."""

    weights_id: str
    step: int


def _restore(workdir: Path, step: int | None, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads the checkpoint of `step`, or the newest that can be read."""
    checkpoints = Checkpoints(workdir, keep=1, read_only=True)
    if step is not None:
        options.check_step(step, checkpoints.steps())
        return checkpoints.restore(step, like)
    restored = checkpoints.restore_latest(like)
    if restored is None:
        raise WorkdirError(f"there is no checkpoint in {workdir} yet")
    return restored


def evaluate(arguments: argparse.Namespace, command: str) -> None:
    """Scores `arguments.rows` rows (0: all) of the validation split, and writes and prints the result.

    Raises UserError if there is no checkpoint of `arguments.step` (None: any) that can be read, or the text is no
    longer the run's.
    """
    workdir, most = arguments.workdir.expanduser(), arguments.rows
    setup = load(workdir)
    like = setup.abstract_state()
    with processes.Watchdog.of_weights(like):
        state, meta = _restore(workdir, arguments.step, like)
    config, tokenizer = setup.config.data, setup.tokenizer
    store = processes.main_first(lambda: data.load_store(config, "validation", setup.store_tokenizer))
    if store.fingerprint != meta["data"]["held_out_fingerprint"]:
        raise WorkdirError(f"the validation text or tokenizer is no longer that of {workdir}")
    here = rows_here(setup.mesh, config.batch_size)
    rows = list(data.eval_rows(store, tokenizer, config, most, here, setup.layout, setup.config.focus))
    evaluator = Evaluator(setup.steps, tokenizer.token_bytes_V, setup.mesh)
    checkpoint = _Checkpoint(weights_id(meta), meta["step"])
    # The rows of a checkpoint are always the same; which of them make a batch depends on the devices.
    id = f"{most} {config.batch_size}"
    examples = [
        Example("held_out", config.seq_len, index, lambda row=row: row, None, index, id)
        for index, row in enumerate(rows)
    ]
    way = Way(lambda _, some: [evaluator.sums(state.params, *some)], lambda: 1, lambda _: 0, lambda _: None)

    def line(_, made, sums):
        return {"score": evaluator.summary([sums])["loss"], "sums": sums}

    out = arguments.out.expanduser() if arguments.out else workdir / "eval/perplexity"
    asked = {"rows": most, "weights": checkpoint.weights_id}
    with Record(out, {"split": "validation"}) as record:
        record.begin(command, asked, [{"task": "held_out", "length": config.seq_len, "examples": len(rows)}])
        with jax.set_mesh(setup.mesh):
            fill(record, checkpoint, examples, way, line, "held-out batches")
        (cell,) = record.cells(asked, [checkpoint.weights_id])
        scored = evaluator.summary(line["sums"] for line in cell.lines[0])
        result = {"rows": most, "step": meta["step"], "perplexity": tables.perplexity(scored["loss"]), **scored}
        result["commands"] = record.commands
        path = record.write("perplexity.json", result)
        places = {"loss by place in row": "by_position", "loss by place in document": "by_context"}
        columns = {name: result[key] for name, key in places.items() if result.get(key) is not None}
        record.write("perplexity.png", tables.picture(columns))
    print(
        f"step {result['step']}: loss {result['loss']:.4f} nats per target, perplexity {result['perplexity']:.3f}, "
        f"{result['bits_per_byte']:.4f} bits per byte, {result['targets']:,} targets\n"
    )
    print("\n".join(tables.bucket_lines(columns)))
    print(f"written to {path}")
    print(json.dumps(result))


def _fit_devices(config: Config, devices: int) -> Config:
    """Takes the run's own mesh and attention where they fit, else one row a device and what suits the devices.

    The variant and the scale of logits stay: they are part of the model. The loss depends on nothing else, but for
    rounding: implementation and tiles order sums, `mesh.context_strategy` says what devices exchange, and
    `mesh.context_layout` what each holds.
    """
    config = _fit_mesh(config, devices)
    try:
        check_attention(config, config.check_devices(devices))
        return config
    except ConfigError as error:
        _tell(f"the run's attention does not fit ({error}); taking auto")
    names = "context_strategy", "context_layout", "ulysses_head_chunks"
    default = {name: getattr(MeshConfig, name) for name in names}
    mesh = dataclasses.replace(config.mesh, **default)
    return dataclasses.replace(config, attention=AttentionConfig.of_model(vars(config.attention)), mesh=mesh)


def _fit_mesh(config: Config, devices: int) -> Config:
    """Takes the run's own mesh where it fits, else one row a device; either over the slices that are there."""
    slices = count_slices(jax.devices())
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, slices=slices))
    try:
        config.check_devices(devices)
        return config
    except ConfigError:
        _tell(f"the run's mesh does not fit {devices} devices; taking data={devices}")
    rows = -(-config.data.batch_size // devices) * devices
    return dataclasses.replace(
        config,
        mesh=MeshConfig(data=devices, fsdp=1, context=1, tensor=1, slices=slices),
        data=dataclasses.replace(config.data, batch_size=rows),
        train=dataclasses.replace(config.train, grad_accum_steps=1),
    )


def _tell(what: str) -> None:
    if processes.is_main():
        print(f"{options.program('perplexity')}: {what}", file=sys.stderr)
