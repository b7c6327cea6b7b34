"""Document sources, found by their names.

Sized sources can be trained on directly: a module here with `make(split, data_dir)`, which returns a sized, indexable
sequence of documents, mappings with the key "text" (str) and, where known, "source" and "title"; and "tfds:NAME", any
data set that TensorFlow Datasets has already prepared on disk.

Sources of files are read once, by `anchorjax prepare`, into a token store: "KIND:PATH", where PATH is a file, a
folder or a pattern with * and **. A kind is a module here with `SUFFIXES`, the names that count in a folder, and
`shards(files, fields)`, which returns `documents.Shard`s. To add one, add a file here and its name to KINDS.

";" joins several sources. Each may end with a comma and a weight, which says how often its documents are in the store:
"jsonl:/books,2;parquet:/web,0.25" takes every book twice and one in four web pages.
"""

import collections
import dataclasses
import glob
import importlib
import itertools
import os
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from anchorjax.config import DataConfig
from anchorjax.data import files, saved_dataset
from anchorjax.data.documents import Fields, Shard

KINDS = ("anchor_context", "array_record", "jsonl", "parquet", "text_folder")
TEXT_KINDS = KINDS[1:]  # those whose documents are texts, not ids
_OBJECT_KINDS = ("array_record", "jsonl", "parquet")  # those whose rows have keys, and may hold conversations
_TFDS_PREFIX = "tfds:"
_NO_SOURCES = ("sequence", "tables", "tfds")  # modules that the others use
MAX_WEIGHT = 100


def load(name: str, split: str, data_dir: str) -> Sequence[Mapping[str, str]]:
    """Returns the documents of one split of a sized source, which is prepared in `data_dir` first if needed.

    Raises:
      ValueError: no source of that name, no such split, or a source of files.
    """
    data_dir = os.path.expanduser(data_dir)
    # Modules are imported on demand: tensorflow_datasets takes half a second.
    if name.startswith(_TFDS_PREFIX):
        module = importlib.import_module(f"{__name__}.tfds")
        return module.make(split, data_dir, name.removeprefix(_TFDS_PREFIX))
    if ";" in name or name.partition(":")[0] in KINDS:
        raise ValueError("files become a token store first: anchorjax prepare, then give data.store")
    if name not in available():
        raise ValueError(f"unknown source {name!r}; allowed: {', '.join([*available(), *_with_paths()])}")
    return importlib.import_module(f"{__name__}.{name}").make(split, data_dir)


def available() -> list[str]:
    """Returns the names of the sized sources in this folder, except the generic "tfds:NAME"."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in KINDS + _NO_SOURCES)


def _with_paths() -> list[str]:
    return [f"{_TFDS_PREFIX}NAME", *(f"{kind}:PATH" for kind in KINDS)]


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A shard, and how often each of its documents is taken."""

    shard: Shard
    weight: float


def shards(config: DataConfig) -> list[Weighted]:
    """Returns the shards of `config.source`, in the order of its parts and of the files' names.

    Raises:
      ValueError: a source that does not exist, a path without files, or an invalid weight.
      DataError: a file that cannot be read, or splits of a saved data set other than train and validation.
    """
    found = []
    specified = [_split_weight(text.strip()) for text in config.source.split(";")]
    defaults = _default_sources([name for name, _ in specified])
    for (name, weight), default in zip(specified, defaults, strict=True):
        found += [Weighted(shard, weight) for shard in _of_one(name, default, config)]
    names = collections.Counter(weighted.shard.name for weighted in found)
    for name, times in names.items():
        if times > 1:
            raise ValueError(f"{name} is named {times} times; give it a weight instead")
    _check_files(found)
    apart = _apart([weighted.shard for weighted in found])  # once more: a source may be one split, the next the other
    return [dataclasses.replace(weighted, shard=shard) for weighted, shard in zip(found, apart, strict=True)]


def _check_files(found: Sequence[Weighted]) -> None:
    """Raises ValueError for a file with several names, because its documents would count several times."""
    names: dict[tuple[int, int], Path] = {}
    for file in dict.fromkeys(file for weighted in found for file in weighted.shard.files):
        first = names.setdefault(files.identity(file), file)
        if first != file:
            raise ValueError(f"{first} and {file} are the same file; name it once, and give it a weight instead")


def _split_weight(text: str) -> tuple[str, float]:
    """Splits "KIND:PATH,WEIGHT" into ("KIND:PATH", weight). A path may contain commas."""
    name, comma, tail = text.rpartition(",")
    if not comma:
        return text, 1.0
    kind, _, path = text.partition(":")
    if kind in KINDS and files.exists(path):
        without = name.partition(":")[2]
        if _is_number(tail) and files.exists(without):
            raise ValueError(
                f"{text!r} can be the path {path!r}, or {without!r} with the weight {tail}; "
                f"write {text + ',1'!r}, or a weight such as {tail}.0"
            )
        return text, 1.0
    try:
        weight = float(tail)
    except ValueError as error:
        raise ValueError(
            f"the weight {tail!r} is not a number, in {text!r}, and there is no file of that name"
        ) from error
    if not 0 < weight <= MAX_WEIGHT:
        raise ValueError(f"the weight {tail} must be above 0 and at most {MAX_WEIGHT}, in {text!r}")
    return name, weight


def _is_number(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return False


def _of_one(name: str, default_source: str, config: DataConfig) -> list[Shard]:
    kind, _, path = name.partition(":")
    fields = Fields(config.text_key, config.source_key, default_source, config.max_row_bytes)
    if config.messages_key:
        if kind not in _OBJECT_KINDS:
            allowed = ", ".join(f"{kind}:PATH" for kind in _OBJECT_KINDS)
            raise ValueError(f"{name!r} holds texts, and data.messages_key={config.messages_key!r} needs {allowed}")
        option = "data.messages_key"
        fields = dataclasses.replace(fields, text=config.messages_key, text_option=option, is_conversation=True)
    if kind in KINDS:
        return of_files(kind, path, fields)
    return importlib.import_module(f"{__name__}.sequence").shards(name, config.data_dir, fields)


def of_files(kind: str, path: str, fields: Fields) -> list[Shard]:
    """Returns the shards of "KIND:PATH". Raises ValueError for no such file, DataError for an unreadable one."""
    module = importlib.import_module(f"{__name__}.{kind}")
    return _apart(module.shards(files.find(path, module.SUFFIXES), fields))


def _apart(shards: Sequence[Shard]) -> list[Shard]:
    """Sets the split of each shard if a saved data set has both. Raises DataError for other splits."""
    splits = saved_dataset.splits(dict.fromkeys(shard.files[0] for shard in shards if len(shard.files) == 1))
    return [
        dataclasses.replace(shard, split=splits[shard.files[0]]) if splits.keys() & shard.files else shard
        for shard in shards
    ]


def kind_of(path: str) -> str:
    """Returns which of TEXT_KINDS a file, a folder or a pattern is, by the file names.

    Raises:
      ValueError: there is no such file, or there are files of no kind or of several.
    """
    suffixes = {kind: importlib.import_module(f"{__name__}.{kind}").SUFFIXES for kind in TEXT_KINDS}
    inside = files.find(path, tuple(itertools.chain(*suffixes.values())))
    found = [kind for kind, ends in suffixes.items() if any(files.ends_with(file.name, ends) for file in inside)]
    if len(found) != 1:
        what = f"files of {len(found)} kinds ({', '.join(found)})" if found else "of no known kind"
        raise ValueError(f"{path!r} is {what}; write KIND:PATH, with KIND one of {', '.join(TEXT_KINDS)}")
    return found[0]


def _default_sources(names: Sequence[str]) -> list[str]:
    """Returns the source names of documents without one: "books" for jsonl:/data/books/*.jsonl and books.jsonl.gz.

    It is a name and not the path, because `data.tags` may write it before every document, and a store must not depend
    on the place of its sources. If two names would be equal (web/train.jsonl and books/train.jsonl), they get more of
    the path.
    """
    parts = [_parts(name) for name in names]
    depths = [1] * len(parts)
    for depth in range(1, max(map(len, parts))):
        told = [tuple(one[-n:]) for one, n in zip(parts, depths, strict=True)]
        alike = {one for one in told if len({tuple(p) for p, t in zip(parts, told, strict=True) if t == one}) > 1}
        depths = [depth + 1 if one in alike else n for one, n in zip(told, depths, strict=True)]
    return ["/".join(one[-n:]) for one, n in zip(parts, depths, strict=True)]


def _parts(name: str) -> list[str]:
    """Returns the parts of a path without patterns and without the suffix, or the name of a data set."""
    kind, _, path = name.partition(":")
    if kind not in KINDS:
        return [(path or name).partition(":")[0]]  # tfds:wikipedia/20230601.en:1.0.0
    named = itertools.takewhile(lambda part: not glob.has_magic(part), Path(path).parts)
    parts = [part for part in named if part not in ("/", "~", ".", "..")] or ["documents"]
    suffixes = importlib.import_module(f"{__name__}.{kind}").SUFFIXES
    suffix = max((one for one in suffixes if files.ends_with(parts[-1], [one])), key=len, default="")
    return [*parts[:-1], parts[-1][: len(parts[-1]) - len(suffix)] or parts[-1]]
