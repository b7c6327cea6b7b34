"""`--config=file.py --config.a.b=value --workdir=dir` -> a resolved Config, or one line that says what is wrong.

The values are parsed by ml_collections' config flags; this file turns their faults, and the arguments that
they would ignore, into `ConfigError`s. The only file that knows ml_collections besides `configs/`.
"""

import functools
import logging
import sys
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from anchorjax.config import Config, resolve, unknown_key
from anchorjax.errors import ConfigError, UsageError


def parse(argv: Sequence[str]) -> tuple[Config, str]:
    """Returns the configuration and the working directory. Arguments and errors are those of `parse_with`."""
    config, options = parse_with(argv, {"workdir": ""}, usage(argv[0]))
    if not options["workdir"]:
        raise UsageError(f"--workdir is missing. {usage(argv[0])}")
    return config, options["workdir"]


def parse_with(
    argv: Sequence[str], options: Mapping[str, bool | str], help_text: str
) -> tuple[Config, dict[str, bool | str]]:
    """The configuration, and `options` with what the command line says of each.

    Args:
      argv: as `sys.argv`, with the program's name first. Must be `sys.argv` but for what `split_runner` took out:
        config flags read the overrides from there.
      options: defaults by name, without dashes. A bool is set by `--name`, a text by `--name=value`.

    Raises:
      ConfigError: an unknown key, a wrong type or an impossible value; names key, value and what is allowed.
      UsageError: anything else, such as an argument without dashes or a missing file.
    """
    for argument in argv[1:]:
        if argument in ("-h", "--help"):
            raise UsageError(help_text)
        if not argument.startswith("--") or argument == "--":
            raise UsageError(f"argument {argument!r} is not understood; write --name=value (two dashes, no space)")
        if argument.startswith(("--flagfile", "--undefok")):  # absl's own, which would read or hide arguments
            raise UsageError(f"argument {argument!r} is not allowed; write the values on the command line")
        if argument.startswith("--workdir") and "workdir" not in options:
            raise UsageError(f"{argument} is not understood. {help_text}")
    overrides = [argument for argument in argv[1:] if argument.lstrip("-").removeprefix("no").startswith("config.")]
    plain = [argv[0], *(argument for argument in argv[1:] if argument not in overrides)]
    defaults = _load(plain, options)
    _check_overrides(defaults, overrides)
    values = _define_flags(options)
    try:
        values(argv)
    except (flags.Error, ValueError) as error:
        raise _translate(error, defaults, overrides) from error
    if not values.config:
        raise UsageError(f"--config is missing. {help_text}")
    return resolve(values.config.to_dict()), {name: getattr(values, name) for name in options}


def split_runner(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """Takes `--runner=NAME` and `--beam.OPTION=VALUE` out of a command line.

    Returns:
      The other arguments; NAME, or None if it is not given; and `--OPTION=VALUE` as Beam understands them.

    Raises:
      UsageError: NAME is missing, given twice, or given as an option of Beam.
    """
    names = [argument.removeprefix("--runner=") for argument in argv if argument.startswith("--runner=")]
    options = [f"--{argument.removeprefix('--beam.')}" for argument in argv if argument.startswith("--beam.")]
    if "--runner" in argv or "" in names:
        raise UsageError("--runner has no name; write --runner=NAME")
    if len(names) > 1 or any(option.partition("=")[0] == "--runner" for option in options):
        raise UsageError("there must be one runner, written --runner=NAME")
    rest = [argument for argument in argv if not argument.startswith(("--runner=", "--beam."))]
    return rest, names[0] if names else None, options


def usage(program: str) -> str:
    return f"Usage: python {program} --config=configs/quickstart.py --workdir=runs/quickstart [--config.a.b=value ...]"


def _define_flags(options: Mapping[str, bool | str]) -> flags.FlagValues:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    for name, default in options.items():
        define = flags.DEFINE_boolean if isinstance(default, bool) else flags.DEFINE_string
        define(name, default, "", flag_values=values)
    return values


def _load(argv: Sequence[str], options: Mapping[str, bool | str]) -> ConfigDict:
    """The config file without overrides, so that a bad override can be told from a bad file."""
    values = _define_flags(options)
    whole, sys.argv = sys.argv, list(argv)
    logging.disable(logging.WARNING)  # absl's word about a None is said below in the one line
    try:
        values(argv)
        config = values.config
        getattr(config, "seed", None)  # for a file that cannot be read it is a stand-in, which raises why
    except Exception as error:  # a config file is Python: whatever it raises is the user's to read
        *more, reason = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, flags.Error) and not more:
            raise UsageError(reason) from error
        raise UsageError(f"the config file cannot be loaded: {reason.strip()}") from error
    finally:
        sys.argv = whole
        logging.disable(logging.NOTSET)
    if not any(argument.startswith("--config") for argument in argv):
        return ConfigDict()
    if not isinstance(config, ConfigDict):
        raise UsageError(f"the config file's get_config() must return a ConfigDict, not {type(config).__name__}")
    return config


def _check_overrides(config: ConfigDict, overrides: Sequence[str]) -> None:
    for argument in overrides:
        path, _, value = argument.lstrip("-").removeprefix("no").removeprefix("config.").partition("=")
        section = config
        *parents, last = path.split(".")
        for depth, name in enumerate([*parents, last]):
            prefix = "".join(f"{parent}." for parent in parents[:depth])
            if not isinstance(section, ConfigDict) or name not in section:
                known = list(section) if isinstance(section, ConfigDict) else []
                raise unknown_key(path, value, [prefix + key for key in known])
            section = section[name]
        if isinstance(section, ConfigDict):
            raise ConfigError(path, value, f"it is a section; set one of {', '.join(section)} in it")


def _translate(error: Exception, defaults: ConfigDict, overrides: Sequence[str]) -> ConfigError | UsageError:
    for argument in overrides:
        name, _, value = argument.lstrip("-").partition("=")
        if f"--{name}={value}" in str(error):
            key = name.removeprefix("no").removeprefix("config.")
            default = functools.reduce(lambda section, part: section[part], key.split("."), defaults)
            return ConfigError(key, value, f"it must be {type(default).__name__}")
    return UsageError(str(error))
