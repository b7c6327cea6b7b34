"""Errors that a user can fix. Each prints as one line and carries the exit code of the process."""

import importlib.metadata
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DONE, PREEMPTED = 0, 75  # exit codes: finished, and stopped by a signal after saving
_TOP = Path(__file__).parents[1]


class UserError(Exception):
    """Something outside the code is wrong. The message says what it is and what is allowed."""

    exit_code = 1


class UsageError(UserError):
    """A command line that cannot be parsed, apart from its configuration values."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration value that cannot be used."""

    exit_code = 2

    def __init__(self, key: str, value: Any, allowed: str):
        super().__init__(f"config.{key}={value!r} is not allowed: {allowed}")
        self.key, self.value, self.allowed = key, value, allowed


class DataError(UserError):
    """Documents that cannot be read, or a token store that cannot be used."""

    exit_code = 2


class PreparationError(UserError):
    """A preparation was interrupted; the same command continues it."""


class WorkdirError(UserError):
    """A working directory that belongs to another run, other data or a running job, or that has no checkpoint."""

    exit_code = 2


class CheckpointError(UserError):
    """Checkpoints exist, but none can be read."""


class WeightsError(UserError):
    """A directory of model weights that cannot or must not be read, or that cannot be written."""

    exit_code = 2


class EvaluationError(UserError):
    """An evaluation that cannot be set up: a file is missing, or a length has no room for its task."""

    exit_code = 2


class TrainingError(UserError):
    """Training cannot continue; the last checkpoint is valid."""


class PeerError(UserError):
    """Another process of the job failed, so that this one cannot go on. Carries the other's exit code."""

    def __init__(self, process: int, fault: str, exit_code: int):
        super().__init__(f"process {process} failed: {fault}")
        self.exit_code = exit_code


class MissingCompiler(UserError):
    """The compiler for the target hardware is not installed."""

    def __init__(self, target: str):
        super().__init__(
            f"the compiler for {target} is missing: python -m pip install --no-deps "
            f"--target {shlex.quote(sys.prefix)}/compilers {shlex.join(compilers())}"
        )


def install_extra(name: str, top: Path = _TOP) -> str:
    """Returns the command that installs the packages of an extra: from the file of a clone, else by the extra."""
    file = top / f"requirements-{name}.txt"
    what = shlex.join(["-r", str(file)]) if file.is_file() else f'"anchorjax[{name}]"'
    return f"python -m pip install {what}"


def compilers(file: Path = _TOP / "requirements-compilers.txt") -> list[str]:
    """Returns what pip is to install: the requirements file of a clone, or what the metadata of a wheel lists."""
    if file.is_file():
        return ["-r", str(file)]
    from packaging.requirements import Requirement  # matplotlib needs it too

    try:
        lines = importlib.metadata.requires("anchorjax") or ()
    except importlib.metadata.PackageNotFoundError:  # a copy of the package alone
        return ["-r", file.name]
    found = [Requirement(line) for line in lines if "compilers" in line]
    return [f"{one.name}{one.specifier}" for one in found if one.marker.evaluate({"extra": "compilers"})]


class LeakageError(UserError):
    """Attention uses a key that its mask forbids, or ignores one that it allows: the results would be wrong."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run_program(name: str, main: Callable[[], int | None], stopped: str = "stopped") -> int:
    """Calls `main` and returns its exit code; a user's faults and Ctrl-C become one line on stderr.

    Args:
      name: what was typed before the arguments, as "anchorjax train" or "python eval/ruler.py".
      stopped: what to say after Ctrl-C, for which the exit code is 1.
    """
    name = name.removeprefix("python ").rpartition("/")[2]
    try:
        return main() or 0
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: {stopped}", file=sys.stderr)
        return 1
