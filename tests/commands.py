"""Parses commands as their own programs do, and goes no further."""

import argparse
import contextlib
import shlex
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from anchorjax import cli
from anchorjax.config import overrides
from anchorjax.parsing import Parser


class Parsed(Exception):
    """What a command made of its arguments."""

    def __init__(self, program: str, arguments: Any):
        self.program, self.arguments = program, arguments


@contextlib.contextmanager
def _stopped_behind_the_parsers() -> Iterator[None]:
    by_argparse, by_key = Parser.parse_args, overrides.parse

    def parse_args(parser, argv=None, namespace=None):
        raise Parsed(parser.prog, by_argparse(parser, argv, namespace))

    def parse(argv, options, usage):
        raise Parsed(usage, by_key(argv, options, usage))

    with mock.patch.object(Parser, "parse_args", parse_args), mock.patch.object(overrides, "parse", parse):
        yield


def parse(command: str) -> Parsed:
    """Fails for a command, task or option that does not exist, and for a value that its option does not take."""
    program, *argv = shlex.split(command, comments=True)
    assert program == "anchorjax", command
    with _stopped_behind_the_parsers(), pytest.raises((Parsed, SystemExit)) as found:
        assert cli.main(argv) == 0, command
    if isinstance(found.value, SystemExit):
        assert found.value.code == 0, command  # --help
        return Parsed(command, argparse.Namespace())
    return found.value
