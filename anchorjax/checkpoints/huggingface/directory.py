"""The files of a model directory, and atomic creation of a new one."""

import contextlib
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from anchorjax import processes
from anchorjax.errors import WeightsError


def member(directory: Path, name: str) -> Path:
    """Returns the path of the file `name` in `directory`.

    Names and links come from downloaded files: neither may lead to other files of this machine. The one exception is
    the Hugging Face cache, whose snapshots are links to `blobs` in the same `models--*` folder.

    Raises:
      WeightsError: not a plain file name; no such file; a link that leads out of the directory.
    """
    if name in ("", ".", "..") or not set(name).isdisjoint("/\\\0"):
        raise WeightsError(f"{directory}: {name!r} is not the name of a file in this directory")
    file = directory / name
    target = file.resolve()
    if not target.is_file():
        raise WeightsError(f"{file} is missing" if not target.exists() else f"{file} is not a file")
    home = directory.resolve()
    allowed = [home, *(folder for folder in home.parents if _is_cache(folder))]
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise WeightsError(f"{file} is a link that leaves its directory, to {target}")
    return file


def _is_cache(folder: Path) -> bool:
    return folder.name.startswith("models--") and (folder / "blobs").is_dir()


TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json"),
)


@contextlib.contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yields a temporary directory beside `path`, which is renamed to `path` if the block ends without an exception.

    An exception removes it. A killed process may leave it behind as `.NAME.*.part`, but never half of `path`.

    Raises:
      WeightsError: `path` exists and is not an empty directory, or an OSError in the block: it cannot be written.
    """
    path = Path(path).expanduser().resolve()
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        if path.exists() and any(path.iterdir()):
            raise WeightsError(f"{path} cannot be written: it exists and is not empty")
        part.mkdir(parents=True)
        yield part
        part.rename(path)  # fails if files have come into `path` meanwhile
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)  # nothing is left of it after the renaming


@contextlib.contextmanager
def new_directory_of_job(path: str | Path) -> Iterator[Path]:
    """Yields the same `new_directory` on all processes of a job; process 0 makes, renames and removes it."""
    with contextlib.ExitStack() as stack:
        yield Path(processes.value_of_main(lambda: str(stack.enter_context(new_directory(path)))))
        processes.on_main(stack.close)


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copies those of the files that exist. Raises WeightsError for links that leave `source`."""
    for name in names:
        if (source / name).exists():
            shutil.copyfile(member(source, name), target / name)
