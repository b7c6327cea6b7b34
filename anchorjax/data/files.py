"""Finds the files of a path, each once, however many links and spellings lead to it."""

import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from anchorjax.data import saved_dataset
from anchorjax.errors import DataError


def find(path: str, suffixes: Sequence[str]) -> list[Path]:
    """Returns the files of a path, a folder or a pattern with * and **, sorted; in a folder those with a suffix.

    Links are followed; suffixes are compared in lower case. Files that Hugging Face `datasets` writes beside its
    data are left out, unless named directly.

    Raises:
      ValueError: there is none.
      DataError: a folder that cannot be read, or what `saved_dataset.data_files` raises.
    """
    place = _place(path)
    if path and os.path.isfile(place):
        return [Path(place)]
    if os.path.isdir(place):
        found = [name for folder in _folders(place) for name in _names(folder) if ends_with(name, suffixes)]
    else:
        found = _matches(place)
    files = once(saved_dataset.data_files(name for name in found if os.path.isfile(name)))
    if not path or not files:
        raise ValueError(f"there is no file {path!r} (in a folder, those count that end in {', '.join(suffixes)})")
    return files


def exists(path: str) -> bool:
    """Returns whether a file, a folder or a pattern matches anything."""
    return os.path.exists(_place(path)) or any(True for _ in _matches(_place(path)))


def ends_with(name: str, suffixes: Sequence[str]) -> bool:
    return name.lower().endswith(tuple(suffixes))


def identity(file: str | Path) -> tuple[int, int]:
    """Returns (device, inode), the same for every name of a file or folder."""
    stat = os.stat(file)
    return stat.st_dev, stat.st_ino


def once(names: Iterable[str | Path]) -> list[Path]:
    """Returns each file under one of its names, sorted: the name with the fewest links, or the first of several."""
    found: dict[tuple[int, int], list[str]] = {}
    for name in names:
        found.setdefault(identity(name), []).append(str(name))
    chosen = (min(names, key=_links) if len(names := sorted(several)) > 1 else names[0] for several in found.values())
    return [Path(name) for name in sorted(chosen)]


def _links(name: str) -> int:
    path = Path(name)
    return sum(part.is_symlink() for part in (path, *path.parents))


def _place(path: str) -> str:
    return os.path.join(os.getcwd(), os.path.expanduser(path))  # workers elsewhere have another working directory


def _names(folder: str, hidden: bool = False) -> list[str]:
    """Returns the paths in a folder; names that begin with a dot only if `hidden`."""
    if os.path.basename(folder) == "lost+found":  # belongs to root, at the top of a disk
        return []
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder) if hidden or not name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error


def _folders(folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yields a folder and all folders below it. A link to a folder that contains it is not followed: it never ends."""
    here = identity(folder)
    if here in above:
        return
    yield folder
    for name in _names(folder):
        if os.path.isdir(name):
            yield from _folders(name, (*above, here))


def _matches(pattern: str) -> Iterator[str]:
    """Yields what glob finds, but "**" does not follow circular links."""
    root, *parts = Path(pattern).parts
    places = [root]
    for at, part in enumerate(parts, 1):
        if part == "**":
            places = [name for place in places if os.path.isdir(place) for name in _folders(place)]
            if at == len(parts):
                places += [name for place in places for name in _names(place)]
        elif glob.has_magic(part):
            hidden = part.startswith(".")
            inside = [name for place in places if os.path.isdir(place) for name in _names(place, hidden)]
            places = [name for name in inside if fnmatch.fnmatchcase(os.path.basename(name), part)]
        else:
            places = [name for place in places if os.path.lexists(name := os.path.join(place, part))]
    yield from dict.fromkeys(places)
