"""Compiles the quickstart's training step and trains its first steps; prints their losses and its operations as JSON.

python -m tests.golden.quickstart_steps > tests/golden/quickstart_steps.json
"""

import collections
import json
import re
import tempfile

import jax

from anchorjax import data
from anchorjax.config import resolve
from anchorjax.sharding import shard_batch
from anchorjax.training.setup import Setup
from configs import quickstart

STEPS = 5
# `%name = type opcode(...)`, where a type may be a tuple of types with their layouts.
OPCODE = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (?:\([^=]*\)|[\w\[\]{},:*()]+) ([a-z][\w-]*)\(", re.MULTILINE)


def first_steps() -> dict[str, object]:
    """The first STEPS steps, as `train.py` computes them on one device.

    Returns:
      loss: nats per target, of each step.
      grad_norm: of each step.
      operations: how often each opcode occurs in the compiled step.
      jax: the version of JAX, by which operations may differ.
    """
    found = {"loss": [], "grad_norm": []}
    with tempfile.TemporaryDirectory() as data_dir:
        config = quickstart.get_config()
        config.data.data_dir = data_dir
        setup = Setup.make(resolve(config.to_dict()))
        tokenizer = setup.store_tokenizer
        store = data.load_store(setup.config.data, "train", tokenizer)
        batches = data.train_batches(store, tokenizer, setup.config.data, seed=setup.config.seed, start_step=0)
        with jax.set_mesh(setup.mesh):
            state, first = setup.first_state(), shard_batch(next(batches), setup.mesh)
            step = jax.jit(setup.steps.train, donate_argnums=0).lower(state, first).compile()
            for number in range(STEPS):
                state, metrics = step(state, shard_batch(next(batches), setup.mesh) if number else first)
                for name, values in found.items():
                    values.append(float(metrics[name]))
        batches.close()
    operations = collections.Counter(OPCODE.findall(step.as_text()))
    return found | {"operations": dict(sorted(operations.items())), "jax": jax.__version__}


if __name__ == "__main__":
    print(json.dumps(first_steps(), indent=2))
