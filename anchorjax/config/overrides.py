"""The command line of a program: `--config=RECIPE --config.a.b=value`, and the program's own `--name=value`.

The grammar is that of ml_collections' config flags, with the types of the declared keys: two dashes, no space, `--name`
or `--noname` for a bool, and commas between the items of a tuple. The last of several values counts.
"""

import ast
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anchorjax.config import manual, recipes
from anchorjax.config.keys import Key
from anchorjax.config.names import unknown_key
from anchorjax.config.options import Option, read_bool, read_options
from anchorjax.config.run import KEYS, SECTIONS, Config, resolve
from anchorjax.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CONFIG = Option(
    "", "a recipe: the name of one that ships, or the path of a file with get_config()", what="RECIPE", required=True
)


def parse(argv: Sequence[str], options: Mapping[str, Option], usage: str) -> tuple[Config, dict[str, Any]]:
    """The configuration, and the value of each option.

    `--help` prints every option and key, and ends the program with code 0.

    Args:
      argv: the arguments, without the program's name.
      options: by name, without dashes, in the order of `--help`. A name that ends with a dot takes every argument
        that begins with it: "beam." makes `--beam.a=1 --beam.b` the value ("a=1", "b").
      usage: what to type, as in "anchorjax train --config=quickstart --workdir=runs/quickstart".

    Raises:
      ConfigError: an unknown key, a wrong type or an impossible value; names the key, the value and what is allowed.
      UsageError: anything else, such as an argument without dashes or a recipe that cannot be loaded.
    """
    _help(argv, lambda: manual.help_text(usage, {"config": CONFIG, **options}, KEYS.values()))
    is_key = {argument: _name(argument).removeprefix("no").startswith("config.") for argument in argv}
    changes = dict(_override(argument) for argument in argv if is_key[argument])
    rest = [argument for argument in argv if not is_key[argument]]
    values = read_options(rest, {"config": CONFIG, **options}, f"Usage: {usage}")
    recipe = recipes.load(values.pop("config"))
    return resolve(_changed(recipe, changes).to_dict()), values


def parse_options(argv: Sequence[str], options: Mapping[str, Option], usage: str) -> dict[str, Any]:
    """The value of each option of a program without a configuration; as `parse` otherwise."""
    _help(argv, lambda: manual.help_text(usage, options))
    return read_options(argv, options, f"Usage: {usage}")


def _help(argv: Sequence[str], text: Callable[[], str]) -> None:
    if "--help" in argv or "-h" in argv:
        try:
            print(text(), flush=True)
        except BrokenPipeError:  # `--help | head`; the interpreter flushes once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)
    for argument in argv:
        if not argument.startswith("--") or argument == "--":
            raise UsageError(f"argument {argument!r} is not understood; write --name=value (two dashes, no space)")


def _name(argument: str) -> str:
    return argument.removeprefix("--").partition("=")[0]


def _override(argument: str) -> tuple[str, Any]:
    """`--config.a.b=value` -> ("a.b", value)."""
    name, has_value, text = argument.removeprefix("--").partition("=")
    path = name.removeprefix("no").removeprefix("config.")
    if path in SECTIONS:
        names = [key for key in KEYS if key.startswith(f"{path}.")]
        raise ConfigError(path, text, f"it is a section; set one of {', '.join(names)}")
    if path not in KEYS:
        raise unknown_key(path, text, _beside(path))
    key = KEYS[path]
    if name.startswith("no"):
        if key.type is not bool or has_value:
            raise UsageError(f"{argument} is not understood; --noconfig.KEY sets a bool to false, without a value")
        return path, False
    if not has_value and key.type is not bool:
        raise UsageError(f"{argument} has no value; write {argument}=VALUE")
    try:
        return path, key.checked(_read(key, text if has_value else "true"))
    except ValueError as error:
        raise ConfigError(path, text, f"it must be {_kind(key)}") from error


def _beside(path: str) -> list[str]:
    """The keys that an unknown one could have meant: those of its section, or the sections."""
    section, dot, _ = path.partition(".")
    if not dot or section not in {*SECTIONS, *KEYS}:
        return [name for name in KEYS if "." not in name] + list(SECTIONS)
    inside = [name for name in KEYS if name.startswith(f"{section}.")]
    return [] if path.rpartition(".")[0] in KEYS else inside


def _read(key: Key, text: str) -> Any:
    """Raises ValueError for a text that is not of the key's type."""
    if key.type is bool:
        return read_bool(text)
    if key.type is not tuple:
        return key.type(text)
    if text[:1] in ("(", "["):
        try:
            return tuple(ast.literal_eval(text))
        except (SyntaxError, TypeError) as error:
            raise ValueError(text) from error
    return tuple(key.item(part.strip()) for part in text.split(",")) if text else ()


def _kind(key: Key) -> str:
    if key.type is tuple:
        return f"tuple: {key.item.__name__} values with commas between them"
    return {bool: "bool: true or false"}.get(key.type, key.type.__name__)


def _changed(config: "ConfigDict", changes: Mapping[str, Any]) -> "ConfigDict":
    """Sets values in a recipe, so that what the recipe derives from them by reference follows."""
    with config.ignore_type(), config.unlocked():
        for path, value in changes.items():
            *sections, name = path.split(".")
            if sections and sections[0] not in config:
                raise ConfigError(sections[0], None, "the recipe lacks the section; start from anchorjax.config.base()")
            functools.reduce(lambda section, part: section[part], sections, config)[name] = value
    return config
