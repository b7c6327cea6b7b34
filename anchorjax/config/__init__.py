"""The configuration of a run: declared keys, recipes, and the frozen dataclasses that they resolve to.

keys.py               how a key is declared, and how to add one
model.py data.py      the keys, section by section
training.py focus.py
run.py                Config and resolve: from nested mappings to checked values
recipes.py            base(), paper(), and recipe(): a shipped recipe by its name, or a file
options.py            the options of a command that are not keys
overrides.py          the command line: a recipe, --config.KEY=VALUE and options
names.py              old names of keys, and the closest known key to an unknown one
saved.py              config.json of an earlier version, in today's keys
manual.py             --help and docs/configuration.md
"""

from anchorjax.config.data import DataConfig
from anchorjax.config.focus import FocusConfig
from anchorjax.config.keys import MAX_INT, RESUME, Key, Section
from anchorjax.config.model import NEUTRAL_ROPE, OPEN, PLAIN, SIZES, LoraConfig, ModelConfig, RopeConfig
from anchorjax.config.names import RENAMED, unknown_key
from anchorjax.config.recipes import base, paper, recipe
from anchorjax.config.run import KEYS, SECTIONS, Config, defaults, max_position, resolve
from anchorjax.config.saved import load_config, upgraded
from anchorjax.config.training import (
    AttentionConfig,
    CheckpointConfig,
    EvalConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)

__all__ = [
    "KEYS",
    "MAX_INT",
    "NEUTRAL_ROPE",
    "OPEN",
    "PLAIN",
    "RENAMED",
    "RESUME",
    "SECTIONS",
    "SIZES",
    "AttentionConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "FocusConfig",
    "Key",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RopeConfig",
    "Section",
    "TrainConfig",
    "base",
    "defaults",
    "load_config",
    "max_position",
    "paper",
    "recipe",
    "resolve",
    "unknown_key",
    "upgraded",
]
