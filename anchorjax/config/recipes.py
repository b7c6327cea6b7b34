"""Recipes: Python files whose `get_config()` returns the ConfigDict that a run starts from.

    from anchorjax.config import base

    def get_config():
        config = base()
        config.init_from = "checkpoints/Llama-3.1-8B"
        config.rope.theta = 1e7
        return config

`--config=NAME` takes a recipe that ships in configs/ (`methods/pose` is configs/methods/pose.py), and
`--config=path/to/mine.py` any other. A recipe that differs little from another starts from it:
`config = recipe("llama3_8b_128k_anchor")`.
"""

import difflib
import inspect
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorjax.config.names import new_name
from anchorjax.config.run import defaults
from anchorjax.errors import UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# The folder configs/ of an installed package, and that of a repository.
FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
NOT_RECIPES = ("__init__", "common")


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


def recipe(name: str) -> "ConfigDict":
    """The ConfigDict of another recipe: a shipped one by its name, or a file by its path from the caller's folder.

    Raises:
      UsageError: there is no such recipe, or it cannot be loaded; the line names the file and the reason.
    """
    caller = inspect.currentframe().f_back.f_code.co_filename
    return load(name, beside=Path(caller).parent)


def load(name: str, beside: Path = Path()) -> "ConfigDict":
    """The ConfigDict of a shipped recipe, or else of a file if the name ends in .py or has a slash.

    Raises UsageError; see `recipe`.
    """
    from ml_collections import ConfigDict

    file = _find(name, beside)
    module = types.ModuleType(file.stem)
    module.__file__ = str(file)
    try:
        exec(compile(file.read_bytes(), file, "exec", dont_inherit=True), module.__dict__)
        config = module.get_config()
    except UsageError:  # of a recipe that this one reads
        raise
    except Exception as error:  # a recipe is Python: whatever it raises is for its author to read
        raise UsageError(f"the recipe {file} cannot be loaded: {_reason(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"the recipe {file}: get_config() must return a ConfigDict, not {type(config).__name__}")
    return config


def shipped() -> dict[str, Path]:
    """The recipes in configs/ by name: quickstart, methods/pose."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    files = sorted(folder.rglob("*.py")) if folder else []
    named = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    return {name: file for name, file in named.items() if file.stem not in NOT_RECIPES}


def _find(name: str, beside: Path) -> Path:
    known = shipped()
    if name not in known and (name.endswith(".py") or "/" in name):
        return beside / Path(name).expanduser()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"there is no recipe {name!r}; {hint}there are {', '.join(known)}; your own is given by its path, "
            f"as in ./{name}.py"
        )
    return known[name]


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ModuleNotFoundError) and error.name == "configs":
        return f"{error}; take base() and recipe() from anchorjax.config, which works from any directory"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return new_name(str(error)) or lines[-1].strip()
