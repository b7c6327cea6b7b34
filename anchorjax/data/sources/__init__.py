"""Document sources: one module per data set, found by its name.

A module has `make(split, data_dir)` and returns a sized, indexable sequence of documents: mappings with the
key "text" (str) and, where known, "source" and "title". To add a data set, add a file here. The name
"tfds:NAME" reads any data set that TensorFlow Datasets has already prepared on disk.
"""

import importlib
import os
import pkgutil
from collections.abc import Mapping, Sequence

_TFDS_PREFIX = "tfds:"


def load(name: str, split: str, data_dir: str) -> Sequence[Mapping[str, str]]:
    """Documents of one split, prepared in `data_dir` first if need be.

    Raises:
      ValueError: no source of that name, or no such split.
    """
    data_dir = os.path.expanduser(data_dir)
    # Modules are imported by need: tensorflow_datasets takes half a second.
    if name.startswith(_TFDS_PREFIX):
        module = importlib.import_module(f"{__name__}.tfds")
        return module.make(split, data_dir, name.removeprefix(_TFDS_PREFIX))
    if name not in available():
        raise ValueError(f"unknown source {name!r}; allowed: {', '.join(available())}, {_TFDS_PREFIX}NAME")
    return importlib.import_module(f"{__name__}.{name}").make(split, data_dir)


def available() -> list[str]:
    """Names of the modules in this folder, without the generic one behind "tfds:NAME"."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "tfds")
