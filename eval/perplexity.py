"""Held-out loss of a run's checkpoint: `python eval/perplexity.py --workdir=runs/quickstart`.

Scores the validation split packed exactly as in training (anchor, mask, positions). Prints a table, and as its
last line one JSON object: `loss` (nats per target), `bits_per_byte`, `perplexity`, `targets`, `step`,
`by_position` (loss by place in the row) and `by_context` (loss by tokens of the document before it in the row;
not under the `full` mask).
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, without installing

import jax
import tqdm
from absl import logging

from anchorjax import data
from anchorjax.config import AttentionConfig, Config, MeshConfig, resolve
from anchorjax.errors import CheckpointError, ConfigError, UserError, WorkdirError
from anchorjax.training.checkpoint import Checkpoints
from anchorjax.training.evaluate import Evaluator
from anchorjax.training.setup import Setup, check_attention
from anchorjax.training.workdir import load_config


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="directory of a training run")
    parser.add_argument("--rows", type=int, default=0, help="rows to score; 0 is the whole validation split")
    arguments = parser.parse_args(argv)
    if arguments.rows < 0:
        parser.error(f"--rows={arguments.rows} is not allowed: it must be 0 or more")
    logging.set_verbosity(logging.ERROR)  # Orbax warns that a reader only reads
    try:
        result = evaluate(arguments.workdir.expanduser(), arguments.rows)
    except UserError as error:
        print(f"perplexity.py: {error}", file=sys.stderr)
        return error.exit_code
    print(table(result))
    print(json.dumps(result))
    return 0


def evaluate(workdir: Path, max_rows: int) -> dict:
    """Loads the newest checkpoint and scores it. Raises UserError if there is none that can be read."""
    setup = Setup.make(fit_devices(resolve(load_config(workdir)), jax.device_count()), workdir)
    checkpoints = Checkpoints(workdir, keep=1, read_only=True)
    restored = checkpoints.restore_latest(setup.abstract_state())
    if restored is None:
        raise CheckpointError(f"there is no checkpoint in {workdir} yet")
    state, meta = restored
    store, tokenizer = data.load_store(setup.config.data, "validation")
    if store.fingerprint != meta["data"]["held_out_fingerprint"]:
        raise WorkdirError(f"the validation text or tokenizer is no longer that of {workdir}")
    rows = list(data.eval_rows(store, tokenizer, setup.config.data, max_rows))
    with jax.set_mesh(setup.mesh):
        scored = Evaluator(setup.steps, tokenizer.token_bytes_V, setup.mesh)(
            state.params, tqdm.tqdm(rows, unit="batch", disable=not sys.stderr.isatty())
        )
    perplexity = math.exp(scored["loss"]) if scored["loss"] < 700 else math.inf
    return {"step": meta["step"], "perplexity": perplexity, **scored}


def fit_devices(config: Config, devices: int) -> Config:
    """The run's own mesh and attention where they fit, else one row a device and what suits the devices.

    The loss depends on neither, but for rounding.
    """
    config = fit_mesh(config, devices)
    try:
        check_attention(config, config.check_devices(devices))
        return config
    except ConfigError as error:
        print(f"perplexity.py: the run's attention does not fit ({error}); taking auto", file=sys.stderr)
    return dataclasses.replace(config, attention=AttentionConfig("auto", 0, 0))


def fit_mesh(config: Config, devices: int) -> Config:
    """The run's own mesh where it fits, else one row a device."""
    try:
        config.check_devices(devices)
        return config
    except ConfigError:
        print(f"perplexity.py: the run's mesh does not fit {devices} devices; taking data={devices}", file=sys.stderr)
    rows = -(-config.data.batch_rows // devices) * devices
    return dataclasses.replace(
        config,
        mesh=MeshConfig(data=devices, fsdp=1, context=1, tensor=1),
        data=dataclasses.replace(config.data, batch_rows=rows),
        train=dataclasses.replace(config.train, accumulation=1),
    )


def table(result: dict) -> str:
    lines = [
        f"step {result['step']}: loss {result['loss']:.4f} nats per target, perplexity {result['perplexity']:.3f}, "
        f"{result['bits_per_byte']:.4f} bits per byte, {result['targets']:,} targets",
        "",
        "tokens before     loss by place in row   loss by place in document",
    ]
    tables = [result["by_position"], result.get("by_context", {})]
    for bucket in dict.fromkeys(itertools.chain(*tables)):
        cells = (table.get(bucket) for table in tables)
        lines.append(f"{bucket:<18}" + "".join(f"{'-' if cell is None else f'{cell:.4f}':<23}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
