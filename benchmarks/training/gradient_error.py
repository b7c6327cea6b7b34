"""How far rounding moves the gradients of one batch: a run's own numbers beside those of float32, weight by weight.

    python -m benchmarks.training.gradient_error --workdir=runs/quickstart [--first] [--json]

Compared are bfloat16 under each rematerialization policy, and float32 under the run's, with float32 where every
activation is kept. The batch is the run's first. `--first` takes the weights of step 0 in place of the newest
checkpoint's. The error is |g - reference| / |reference| over all elements of a weight.
"""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from anchorjax import data
from anchorjax.checkpoints.orbax import Checkpoints
from anchorjax.config import resolve
from anchorjax.config.saved import load_config
from anchorjax.models import decoder
from anchorjax.models.linear import named_leaves
from anchorjax.sharding import shard_batch
from anchorjax.training.setup import Setup
from anchorjax.training.state import TrainState

EVERYTHING = "everything"  # no policy of `model.remat`: automatic differentiation without `jax.checkpoint`
COMPARED = (("float32", "none"), *(("bfloat16", remat) for remat in (EVERYTHING, "none", "attention", "full")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="directory of a run")
    parser.add_argument("--first", action="store_true", help="weights of step 0")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    errors = measure(arguments.workdir, arguments.first)
    names = ["/".join(pair) for pair in COMPARED]
    print(f"{'relative error':26s}", *(f"{name:>20s}" for name in names))
    for leaf in errors[names[0]]:
        print(f"{leaf:26s}", *(f"{errors[name][leaf]:20.1e}" for name in names))
    if arguments.json:
        print(json.dumps(errors))


def measure(workdir: Path, first: bool) -> dict[str, dict[str, float]]:
    """Relative errors by dtype and policy, such as "bfloat16/none", and by the weight's name."""
    setup = with_policy(Setup.make(resolve(load_config(workdir)), workdir), "bfloat16", "none")
    with jax.set_mesh(setup.mesh):
        state = setup.first_state() if first else Checkpoints(workdir, keep=1).restore_latest(setup.abstract_state())[0]
        reference = gradients(setup, state, "float32", EVERYTHING)
        found = {}
        for dtype, remat in COMPARED:
            grads = gradients(setup, state, dtype, remat)
            found[f"{dtype}/{remat}"] = {name: error(grads[name], reference[name]) for name in reference}
    return found


def gradients(setup: Setup, state: TrainState, dtype: str, remat: str) -> dict[str, np.ndarray]:
    """Gradients of the run's first batch by the weight's name, float64."""
    config = setup.config
    tokenizer = setup.store_tokenizer
    store = data.load_store(config.data, "train", tokenizer)
    with contextlib.closing(
        data.train_batches(store, tokenizer, config.data, seed=config.seed, start_step=0)
    ) as batches:
        batch = shard_batch(next(batches), setup.mesh)
    steps = with_policy(setup, dtype, "none" if remat == EVERYTHING else remat).steps
    with everything_kept() if remat == EVERYTHING else contextlib.nullcontext():
        _, grads = jax.jit(steps._gradients)(state.params, batch, state.key)
    return {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(grads).items()}


def with_policy(setup: Setup, dtype: str, remat: str) -> Setup:
    model = dataclasses.replace(setup.config.model, compute_dtype=dtype, remat=remat)
    config = dataclasses.replace(setup.config, model=model)
    return dataclasses.replace(setup, config=config, steps=dataclasses.replace(setup.steps, config=config))


@contextlib.contextmanager
def everything_kept() -> Iterator[None]:
    with mock.patch.object(decoder, "remat", lambda block, policy: block):
        yield


def error(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


if __name__ == "__main__":
    main()
