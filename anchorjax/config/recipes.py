"""Recipes: the ConfigDicts that runs start from.

    from anchorjax import config as configuration

    def get_config():
        config = configuration.base()
        config.init_from = "checkpoints/Llama-3.1-8B"
        config.rope.theta = 1e7
        return config

Any key can be changed on the command line: `--config.optimizer.learning_rate=1e-3`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from anchorjax.config.run import defaults

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def base() -> "ConfigDict":
    """Every key with its default. A key that does not exist cannot be set in it."""
    from ml_collections import ConfigDict  # only recipes need it: workers without it read `defaults`

    return ConfigDict(defaults()).lock()


def paper(model: Mapping[str, Any], init_from: str, *, seq_len: int, theta: float) -> "ConfigDict":
    """Continued pretraining as in "When Precision Meets Position" (arXiv 2411.13476, Table 1 and the authors' code).

    2000 steps of 8 rows, AdamW with a constant 2e-5, and a RoPE base for the sequence length. The paper's text is
    SlimPajama, which must be given as a store that `anchorjax prepare` wrote: `--config.data.store=DIR`.

    Args:
      model: the sizes that the checkpoint must have, from `anchorjax.models.families.published`.
      init_from: its Hugging Face directory.
    """
    config = base()
    config.model.update(model)
    config.init_from = init_from
    config.rope.theta = theta
    config.data.source = ""
    config.data.seq_len = seq_len
    config.data.batch_size = 8
    config.data.mask = "anchor"
    config.optimizer.learning_rate = 2e-5
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.train.steps = 2000
    config.eval.every = 200
    config.checkpoint.every = 100
    config.checkpoint.keep = 5  # the paper averages RULER over the last five checkpoints
    config.mesh.fsdp = 8  # one row each
    config.mesh.context = -1  # all other devices share a row's tokens
    return config
