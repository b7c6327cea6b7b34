"""A tiny checkpoint, and configurations of runs that train FocusLLM's projections over it."""

import json

import jax

from anchorjax.checkpoints.huggingface import checkpoint as hf_checkpoint
from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.config import Config
from tests import tiny
from tests.training.making import make_mesh, make_state, make_steps

# Rows of 97 bytes: the anchor, three chunks of 20 and 36 local tokens, of which the last 29 have targets.
FOCUS = {"data__seq_len": 97, "focus__chunk": 20, "focus__local": 36, "focus__prompt": 8}


def write_base(directory, seed: int = 5, **changes) -> None:
    """A Hugging Face directory with a random tiny model and no tokenizer."""
    steps = make_steps(tiny.config(seed=seed, **changes))
    with jax.set_mesh(make_mesh(1)):
        hf_checkpoint.save(make_state(steps).params, steps.spec.model, steps.spec.lora, directory, "float32")
    fields = hf_config.write(steps.spec.model, steps.spec.rope, max_position=256, dtype="float32", source={})
    (directory / "config.json").write_text(json.dumps(fields))


def config_of(base, **changes) -> Config:
    return tiny.config(init_from=str(base), **(FOCUS | changes))
