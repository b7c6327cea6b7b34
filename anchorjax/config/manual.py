"""What `--help` prints, and docs/configuration.md: every option and key with its default and reason.

python -m anchorjax.config.manual        # writes docs/configuration.md of this repository
"""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anchorjax.config.keys import RESUME, Key
from anchorjax.config.options import Option
from anchorjax.config.run import KEYS, SECTIONS

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
WIDTH = 110
ABOUT = """\
# Configuration

Every key of a recipe, with its default. `python -m anchorjax.config.manual` wrote this page from the keys' declarations
in `anchorjax/config/`; a test fails if it is not current. A recipe (`configs/*.py`) sets keys, and the command line has
the last word: `--config.data.seq_len=8192`, `--config.lora.targets=q,v`, `--noconfig.train.tensorboard`.

A run saves its resolved configuration in `config.json`. A resumed run refuses another value of a *fixed* key, since
that key decides what is computed. A *free* key may change. A *grow* key may be larger, if the learning rate so far does
not depend on it.
"""
HEAD = "| key | default | allowed | on resume | meaning |\n|---|---|---|---|---|\n"


def help_text(usage: str, options: Mapping[str, Option], keys: Iterable[Key] = ()) -> str:
    """The text of `--help`."""
    lines = [f"Usage: {usage}", "", "Options:"]
    for name, option in options.items():
        lines += _entry(*_option(name, option))
    keys = list(keys)
    if keys:
        lines += [
            "",
            *_wrapped("Keys of the configuration, with their defaults; a recipe may set others. " + _legend(), 0),
        ]
    for key in keys:
        about = "" if key.resume == "fixed" else f" [{key.resume}]"
        allowed = f" ({key.allowed})" if key.choices or key.low is not None else ""
        lines += _entry(f"--config.{key.name}={written(key.default)}", f"{key.why}{allowed}{about}")
    return "\n".join(lines)


def page() -> str:
    """The content of docs/configuration.md."""
    parts = [ABOUT]
    for name in ("", *SECTIONS):
        keys = [key for key in KEYS.values() if key.name.rpartition(".")[0] == name]
        parts.append(f"\n## {name or 'The run'}\n\n{HEAD}")
        for key in keys:
            cells = (f"`{key.name}`", f"`{written(key.default) or ' '}`", key.allowed, key.resume, key.why)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def written(value: Any) -> str:
    """A value as the command line takes it: true, 0.1, q,v."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(written, value)) if isinstance(value, tuple) else str(value)


def _legend() -> str:
    rules = {key.resume for key in KEYS.values()} - {"fixed"}
    return " ".join(f"[{name}]: {RESUME[name]}." for name in RESUME if name in rules)


def _option(name: str, option: Option) -> tuple[str, str]:
    about = f"one of {', '.join(option.choices)}" if option.choices else ""
    default = "required" if option.required else f"default: {written(option.default)}" if option.default else ""
    details = "; ".join(part for part in (about, default) if part)
    value = f"={option.what}" if option.bare is None else f"[={option.what}]"
    kind = "OPTION=VALUE" if name.endswith(".") else "" if isinstance(option.default, bool) else value
    return f"--{name}{kind}", f"{option.why} ({details})" if details else option.why


def _entry(name: str, about: str) -> list[str]:
    return [f"  {name}", *_wrapped(about, 6)]


def _wrapped(text: str, indent: int) -> list[str]:
    space = " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page())
