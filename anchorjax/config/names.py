"""Names of keys that do not exist: those that were renamed, and those that are misspelt."""

import difflib
from typing import Any

from anchorjax.errors import ConfigError

RENAMED = {  # in November 2026
    "model.model_width": "model.d_model",
    "model.ffn_width": "model.d_ff",
    "model.head_width": "model.head_dim",
    "model.window": "model.sliding_window",
    "data.row_length": "data.seq_len",
    "data.batch_rows": "data.batch_size",
    "train.accumulation": "train.grad_accum_steps",
    "attention.context_parallel": "mesh.context_strategy",
}
RENAMED_VALUES = {"mesh.context_strategy": {"gather": "all_gather"}}  # by the key's new name


def unknown_key(name: str, value: Any, known: list[str]) -> ConfigError:
    """The error of a key that does not exist: it names the key's new name, or the known key that was probably meant."""
    if name in RENAMED:
        return ConfigError(name, value, f"the key is now config.{RENAMED[name]}")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean config.{close[0]}? " if close else ""
    there_are = f"there are {', '.join(known)}" if known else f"{name.rpartition('.')[0]} is a value, not a section"
    return ConfigError(name, value, f"there is no such key; {hint}{there_are}")


def new_name(text: str) -> str | None:
    """The new name of the renamed key that a message quotes, if it quotes one."""
    for old, new in RENAMED.items():
        leaf = old.rpartition(".")[2]
        if f'"{leaf}"' in text or f"'{leaf}'" in text:
            return f"{old} is now {new}"
    return None
