"""A run's own held-out loss: the validation split packed exactly as in training, from the newest checkpoint."""

import dataclasses
import sys
from pathlib import Path

import jax
import tqdm

from anchorjax import data
from anchorjax.checkpoints.orbax import Checkpoints, weights_mark
from anchorjax.config import AttentionConfig, Config, MeshConfig, resolve
from anchorjax.errors import ConfigError, WorkdirError
from anchorjax.evaluation.results import Results
from anchorjax.evaluation.tasks.perplexity import perplexity
from anchorjax.training.evaluate import Evaluator
from anchorjax.training.setup import Setup, check_attention
from anchorjax.training.workdir import load_config


def load(workdir: Path) -> Setup:
    """Raises UserError: there is no run, or it cannot be set up on these devices."""
    fields = load_config(workdir)
    if "data" not in fields:
        raise WorkdirError(f"{workdir} is a model's directory and no run, without a split of its own: give --text")
    return Setup.make(_fit_devices(resolve(fields), jax.device_count()), workdir)


def evaluate(setup: Setup, workdir: Path, max_rows: int, results: Results) -> dict:
    """Loads the newest checkpoint and scores `max_rows` rows (0: all) that `results` does not have.

    Raises UserError if there is no checkpoint that can be read, or the text is no longer the run's.
    """
    restored = Checkpoints(workdir, keep=1, read_only=True).restore_latest(setup.abstract_state())
    if restored is None:
        raise WorkdirError(f"there is no checkpoint in {workdir} yet")
    state, meta = restored
    store, tokenizer = data.load_store(setup.config.data, "validation")[0], setup.tokenizer
    if store.fingerprint != meta["data"]["held_out_fingerprint"]:
        raise WorkdirError(f"the validation text or tokenizer is no longer that of {workdir}")
    rows = list(data.eval_rows(store, tokenizer, setup.config.data, max_rows))
    evaluator = Evaluator(setup.steps, tokenizer.token_bytes_V, setup.mesh)
    # Of one checkpoint, rows are always the same ones; which of them are a batch depends on the devices.
    begin = f"{weights_mark(meta)} {max_rows} {setup.config.data.batch_size}"
    keys = [f"{begin} {index}" for index in range(len(rows))]
    with jax.set_mesh(setup.mesh):
        for key, batch in zip(keys, tqdm.tqdm(rows, unit="batch", disable=not sys.stderr.isatty()), strict=True):
            if key not in results.answers:
                results.add(key, sums=evaluator.sums(state.params, batch))
    scored = evaluator.summary(results.answers[key]["sums"] for key in keys)
    return {"step": meta["step"], "perplexity": perplexity(scored["loss"]), **scored}


def _fit_devices(config: Config, devices: int) -> Config:
    """The run's own mesh and attention where they fit, else one row a device and what suits the devices.

    The loss depends on neither, but for rounding.
    """
    config = _fit_mesh(config, devices)
    try:
        check_attention(config, config.check_devices(devices))
        return config
    except ConfigError as error:
        print(f"perplexity.py: the run's attention does not fit ({error}); taking auto", file=sys.stderr)
    return dataclasses.replace(config, attention=AttentionConfig("auto", 0, 0))


def _fit_mesh(config: Config, devices: int) -> Config:
    """The run's own mesh where it fits, else one row a device."""
    try:
        config.check_devices(devices)
        return config
    except ConfigError:
        print(f"perplexity.py: the run's mesh does not fit {devices} devices; taking data={devices}", file=sys.stderr)
    rows = -(-config.data.batch_size // devices) * devices
    return dataclasses.replace(
        config,
        mesh=MeshConfig(data=devices, fsdp=1, context=1, tensor=1),
        data=dataclasses.replace(config.data, batch_size=rows),
        train=dataclasses.replace(config.train, grad_accum_steps=1),
    )
