"""Trains the first steps of the quickstart recipe and prints their losses as JSON.

python -m tests.golden.quickstart_losses > tests/golden/quickstart_losses.json
"""

import json
import tempfile

import jax

from anchorjax import data
from anchorjax.config import resolve
from anchorjax.sharding import shard_batch
from anchorjax.training.setup import Setup
from configs import quickstart

STEPS = 5


def losses() -> dict[str, list[float]]:
    """Loss (nats per target) and gradient norm of the first STEPS steps, as `train.py` computes them on one device."""
    found: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    with tempfile.TemporaryDirectory() as data_dir:
        config = quickstart.get_config()
        config.data.data_dir = data_dir
        setup = Setup.make(resolve(config.to_dict()))
        tokenizer = setup.store_tokenizer
        store = data.load_store(setup.config.data, "train", tokenizer)
        batches = data.train_batches(store, tokenizer, setup.config.data, seed=setup.config.seed, start_step=0)
        with jax.set_mesh(setup.mesh):
            state, step = setup.first_state(), jax.jit(setup.steps.train, donate_argnums=0)
            for _ in range(STEPS):
                state, metrics = step(state, shard_batch(next(batches), setup.mesh))
                for name, values in found.items():
                    values.append(float(metrics[name]))
        batches.close()
    return found


if __name__ == "__main__":
    print(json.dumps(losses(), indent=2))
