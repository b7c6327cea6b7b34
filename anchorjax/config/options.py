"""Options of a program: what a command line takes beside the keys of the configuration."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anchorjax.errors import UsageError

BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
      default: its type (bool, int, float, str; a tuple for a name that ends with a dot) is the option's.
      why: what it means, and the reason for the default; one line of `--help`.
      what: the value's name in `--help` and messages.
      choices: the allowed values of a text.
      read: makes the value of a text; raises ValueError with what is allowed.
      required: the program needs another value than the default.
      once: it must not be given twice.
      bare: the value of the name alone, without "=VALUE"; None: a value must follow.
    """

    default: Any
    why: str
    what: str = "VALUE"
    choices: tuple[str, ...] = ()
    read: Callable[[str], Any] | None = None
    required: bool = False
    once: bool = False
    bare: Any = None


def read_options(argv: Sequence[str], options: Mapping[str, Option], usage: str) -> dict[str, Any]:
    """The value of each option; see `overrides.parse`. Raises UsageError."""
    values: dict[str, Any] = {name: option.default for name, option in options.items()}
    given = set()
    for argument in argv:
        name, has_value, text = argument.removeprefix("--").partition("=")
        prefix = f"{name.partition('.')[0]}."
        if prefix in options and name != prefix:
            values[prefix] = (*values[prefix], argument.removeprefix(f"--{prefix}"))
            continue
        negated = name.removeprefix("no")
        if name not in options and type(values.get(negated)) is bool and not has_value:
            values[negated] = False
            continue
        if name not in options:
            raise _unknown(argument, name, options, usage)
        option = options[name]
        if option.once and name in given:
            raise UsageError(f"there must be one {name}, written --{name}={option.what}")
        given.add(name)
        values[name] = _value(name, option, text if has_value else None)
    for name, option in options.items():
        if option.required and values[name] == option.default:
            raise UsageError(f"--{name} is missing. {usage}")
    return values


def _value(name: str, option: Option, text: str | None) -> Any:
    kind = type(option.default)
    if text is None and kind is bool:
        return True
    if text is None and option.bare is not None:
        return option.bare
    if not text:
        raise UsageError(f"--{name} has no {option.what.lower()}; write --{name}={option.what}")
    try:
        value = option.read(text) if option.read else read_bool(text) if kind is bool else kind(text)
    except ValueError as error:
        reason = str(error) if option.read or kind is bool else f"it must be {kind.__name__}"
        raise UsageError(f"--{name}={text} is not allowed: {reason}") from error
    if option.choices and value not in option.choices:
        raise UsageError(f"--{name}={text} is not allowed: it must be one of {', '.join(option.choices)}")
    return value


def _unknown(argument: str, name: str, options: Mapping[str, Option], usage: str) -> UsageError:
    known = [f"--{each}OPTION" if each.endswith(".") else f"--{each}" for each in options]
    close = difflib.get_close_matches(f"--{name}", known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return UsageError(f"{argument} is not understood; {hint}there are {', '.join(known)}. {usage}")


def read_bool(text: str) -> bool:
    """Raises ValueError unless the text is true or false (or t, f, 1, 0)."""
    if text.lower() not in BOOLS:
        raise ValueError("it must be bool: true or false")
    return BOOLS[text.lower()]
