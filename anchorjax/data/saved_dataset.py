"""Folders that Hugging Face `datasets` has saved: which of their files hold documents, and of which split.

`Dataset.save_to_disk` writes `state.json`, which names the data files. Working with the data set then leaves results
(`cache-*.arrow`, the documents once more) and orders of rows beside them. `DatasetDict.save_to_disk` writes such a
folder for each split, and `dataset_dict.json` above them. What was downloaded and is kept in the cache has the splits
in one folder, in the names of its files: `c4-train-00000-of-00002.arrow`, `c4-validation.arrow`.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from anchorjax.errors import DataError

_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"
_SPLITS = {"train", "validation"}


def data_files(names: Iterable[str]) -> Iterator[str]:
    """Yields the names of data files, without what `datasets` writes beside its data.

    Raises:
      DataError: a data file is missing, or `state.json` cannot be read or chooses among rows.
    """
    by_folder: dict[str, list[str]] = {}
    for name in names:
        by_folder.setdefault(os.path.dirname(name), []).append(name)
    for folder, inside in by_folder.items():
        yield from _data_files(Path(folder), inside)


def _data_files(folder: Path, inside: list[str]) -> Iterator[str]:
    tables = {name for name in inside if name.lower().endswith(".arrow")}
    books = {name for name in inside if os.path.basename(name) in (_STATE, _INFO, _DICT)}
    if not tables and not books:
        return (yield from inside)
    named = _named(folder, bool(tables))
    if named is None:
        if not (folder / _INFO).exists() and not (folder / _DICT).exists():
            return (yield from inside)
        named = {os.path.basename(name) for name in tables if not os.path.basename(name).startswith("cache-")}
    yield from (name for name in inside if name not in tables | books or os.path.basename(name) in named)


def _named(folder: Path, has_tables: bool) -> set[str] | None:
    """Returns the data files in `state.json`; None if `datasets` did not write this folder."""
    file = folder / _STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if not has_tables:  # JSON lines of that name
            return None
        raise DataError(f"{file} cannot be read: {error}") from error
    if not isinstance(state, Mapping) or not isinstance(state.get("_data_files"), list):
        return None
    if state.get("_indices_data_files"):  # by versions below 2.0, for what was shuffled or filtered
        raise DataError(
            f"{file} has _indices_data_files: the rows have another order than in the files, or are some of them; "
            "load the data set, call flatten_indices() and save it again"
        )
    named = {os.path.basename(str(one.get("filename"))) for one in state["_data_files"]}
    for name in sorted(named):
        if not (folder / name).is_file():
            raise DataError(f"{file} names {name}, which does not exist")
    return named


def splits(files: Iterable[Path]) -> dict[Path, str]:
    """Returns "train" or "validation" for each file, if both splits of a data set are among the files.

    Raises:
      DataError: files of several splits of a data set that are not exactly train and validation.
    """
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        by_folder.setdefault(file.parent.resolve(), []).append(file)  # two sources may spell it in two ways
    by_data_set: dict[Path, dict[str, list[Path]]] = {}
    for folder, inside in by_folder.items():
        if folder.name in _splits_of(folder.parent / _DICT):
            by_data_set.setdefault(folder.parent, {}).setdefault(folder.name, []).extend(inside)
            continue
        names = [] if (folder / _STATE).exists() else _splits_of(folder / _INFO)
        for file in inside if names else ():
            if split := _split_in(file.name, names):
                by_data_set.setdefault(folder, {}).setdefault(split, []).append(file)
    found: dict[Path, str] = {}
    for folder, by_split in by_data_set.items():
        if len(by_split) == 1:
            continue
        if by_split.keys() != _SPLITS:
            names = sorted(by_split)
            file = by_split[names[-1]][0]
            one = file.parent if file.parent.resolve() != folder else re.sub(r"-\d{5}-(?=of-\d{5}\.)", "-*-", str(file))
            raise DataError(
                f"{folder} is a data set with the splits {', '.join(names)}, and only train and validation can be read "
                f"together; name the files of one split, such as {one}"
            )
        found |= {file: split for split, inside in by_split.items() for file in inside}
    return found


def _splits_of(file: Path) -> list[str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return []
    found = content.get("splits") if isinstance(content, dict) else None
    return [name for name in found if isinstance(name, str)] if isinstance(found, list | dict) else []


def _split_in(name: str, splits: Iterable[str]) -> str | None:
    """Returns the split that the name of a cached file contains."""
    match = re.search(rf"-({'|'.join(map(re.escape, splits))})(-\d{{5}}-of-\d{{5}})?\.arrow$", name)
    return match[1] if match else None
