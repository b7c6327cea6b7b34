"""A saved config.json in today's keys: what every reader of one calls first."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchorjax.config.names import RENAMED, RENAMED_VALUES
from anchorjax.config.run import KEYS, SECTIONS, defaults
from anchorjax.errors import WorkdirError
from anchorjax.files import read_json


def load_config(workdir: Path) -> dict[str, Any]:
    """The configuration of the run in `workdir`, in today's keys. Raises WorkdirError if there is none."""
    file = workdir / "config.json"
    config = read_json(file, WorkdirError)
    if config is None:
        raise WorkdirError(f"there is no run in {workdir}: {file} does not exist")
    return upgraded(config)


def upgraded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json, with renamed keys under their new names; later and unused ones have their defaults.

    A run's file gets every key. A file that anchorjax convert wrote has some of the sections, and keeps to them.
    Sizes of the model are never filled in: without them the file is damaged. A Hugging Face config.json, which has a
    `model_type`, comes back as it is.
    """
    if "model_type" in fields:
        return dict(fields)
    is_run = isinstance(fields.get("data"), Mapping)
    known = json.loads(json.dumps(defaults()))  # with lists for tuples, as in the file
    filled = {name: value for name, value in known.items() if is_run or name in fields}
    for name, value in _renamed(fields).items():
        if name in SECTIONS and isinstance(value, Mapping):
            filled[name] = _section(name, value, known[name])
        else:
            filled[name] = value
    return filled


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with renamed keys under their new names, values too. A section that is missing stays missing."""
    fields = {name: dict(value) if isinstance(value, Mapping) else value for name, value in fields.items()}
    for old, new in RENAMED.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        if key in _mapping(fields, section):
            value = fields[section].pop(key)
            if isinstance(value, str):
                value = RENAMED_VALUES.get(new, {}).get(value, value)
            _mapping(fields, new_section)[new_key] = value
    return fields


def _mapping(fields: dict[str, Any], section: str) -> dict[str, Any]:
    value = fields.get(section)
    return value if isinstance(value, dict) else {}


def _section(name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    later = {key: value for key, value in known.items() if KEYS[f"{name}.{key}"].role != "size"}
    filled = later | given
    # An earlier version took values that nothing read; `Section` refuses them.
    unused = {key for key in filled.keys() & known.keys() if not KEYS[f"{name}.{key}"].is_used(filled)}
    return {key: known[key] if key in unused else value for key, value in filled.items()}
