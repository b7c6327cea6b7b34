"""The parser of the commands that take no configuration."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

_RENAMED = {"--batch-rows": "--batch-size"}


def on_disk(text: str) -> Path:
    """The type of an option that is a path. Refuses gs://BUCKET and the like, which Path takes for a folder "gs:"."""
    if is_address(text):
        raise argparse.ArgumentTypeError(f"{text!r} is an address: it must be a path; copy what is there")
    return Path(text)


def is_address(text: str) -> bool:
    return "://" in text


class Refused(SystemExit):
    """A command line that cannot be parsed; `fault` has been printed."""

    def __init__(self, fault: str):
        super().__init__(2)
        self.fault = fault


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows the default of every option that has one and does not say it itself."""

    def _get_help_string(self, action):
        default = action.default
        if default in (None, False, "", []) or default == argparse.SUPPRESS or "default" in action.help:
            return action.help
        shown = ",".join(map(str, default)) if isinstance(default, list | tuple) else default
        return f"{action.help} (default: {shown})".replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """Names a fault of the command line in one line, and shows defaults in `--help`."""

    def __init__(self, prog: str, description: str = "", **more):
        super().__init__(prog, description=description, formatter_class=_Formatter, allow_abbrev=False, **more)

    def parse_args(self, argv=None, namespace=None):
        for option in sys.argv[1:] if argv is None else argv:
            if (old := option.partition("=")[0]) in _RENAMED:
                self.error(f"{old} was renamed: write {_RENAMED[old]}")
        return super().parse_args(argv, namespace)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise Refused(message)
