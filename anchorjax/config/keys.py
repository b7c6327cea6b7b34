"""Keys of the configuration: each is one field of a section, and is declared nowhere else.

To add a key, add one line to its section (model.py, data.py or training.py):

    seq_len: int = key(4096, "T: tokens of a row, BOS included", low=2, high=2**24)

The default of `base()`, the check of types and ranges, `--config.data.seq_len=VALUE`, `--help`, docs/configuration.md
and the rule for a resumed run all follow from that line. After a change, run `python -m anchorjax.config.manual` and
`python -m tests.config.test_golden`, which renew the page and the resolved recipes.

A run that was saved before a key existed takes its default, so the default of a new key must be what the program
did without it. A check between two keys goes into the section's `__post_init__`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from anchorjax.errors import ConfigError

MAX_INT = 2**31 - 1  # steps, positions and sizes are int32 on the device
RESUME = {
    "fixed": "it decides what is computed, so a run keeps it",
    "free": "it changes where or how a run computes, so a resumed run may have another value",
    "grow": "a resumed run may have a larger value, if the learning rate of the steps so far does not depend on it",
}
# How a key of the model relates to the checkpoint in init_from:
#   size      its default 0 takes the checkpoint's; without a checkpoint it must be given
#   given     its default takes the checkpoint's; without a checkpoint it has a value for all families
#   feature   its default is Llama's value, and takes the checkpoint's
#   scaling   its default says nothing, and is the only value with rope.scaling="auto"
Role = Literal["", "size", "given", "feature", "scaling"]


def key(
    default: Any,
    why: str,
    *,
    low: float | None = None,
    high: float = math.inf,
    open_low: bool = False,
    choices: tuple[str, ...] = (),
    resume: Literal["fixed", "free", "grow"] = "fixed",
    role: Role = "",
    used_with: tuple[str, str | tuple[str, ...]] | None = None,
) -> Any:
    """A field of a section.

    Args:
      why: what the value means, and the reason for the default; one line of `--help`.
      low, high: the allowed range, both ends included, or without `low` if `open_low`.
      choices: the allowed values of a text.
      resume: whether a run that is resumed may have another value: a name in RESUME.
      role: how the key relates to a checkpoint; see Role.
      used_with: (another key of the section, its value or values) without which nothing reads the key, so that it must
        have its default.
    """
    rule = {"low": low, "high": high, "open_low": open_low, "choices": choices, "resume": resume, "role": role}
    if used_with and isinstance(used_with[1], str):
        used_with = used_with[0], (used_with[1],)
    return dataclasses.field(default=default, metadata={"why": why, **rule, "used_with": used_with})


@dataclasses.dataclass(frozen=True)
class Key:
    """One declared key.

    Attributes:
      name: with its section, as in "data.seq_len".
      type: bool, int, float, str or tuple; `item` is the type of a tuple's items, else None.
    """

    name: str
    type: type
    item: type | None
    default: Any
    why: str
    low: float | None
    high: float
    open_low: bool
    choices: tuple[str, ...]
    resume: str
    role: Role
    used_with: tuple[str, tuple[str, ...]] | None

    @classmethod
    def of(cls, section: type["Section"], field: dataclasses.Field) -> "Key":
        item = get_args(field.type)[0] if get_origin(field.type) is tuple else None
        kind = tuple if item else field.type
        return cls(section.path(field.name), kind, item, field.default, **field.metadata)

    @property
    def field(self) -> str:
        """The name within its section."""
        return self.name.rpartition(".")[2]

    @property
    def allowed(self) -> str:
        """What a value must be, as in "it must be ..."."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.low is None:
            return self.type.__name__
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        high = f" and at most {_number(self.high)}" if self.high < math.inf else ""
        return f"{'a finite float' if self.type is float else 'an int'}, {low}{high}"

    def is_used(self, section: Mapping[str, Any]) -> bool:
        """Whether anything reads the key when its section has these values."""
        return self.used_with is None or section.get(self.used_with[0]) in self.used_with[1]

    def checked(self, value: Any) -> Any:
        """The value, with int converted to float and list to tuple where the key has these. Raises ConfigError."""
        if type(value) is int and abs(value) > MAX_INT:
            raise ConfigError(self.name, value, f"it must be at most {MAX_INT} in size")
        if (self.type is float and type(value) is int) or (self.type is tuple and type(value) is list):
            value = self.type(value)  # a whole number; a list from JSON
        if type(value) is not self.type:
            raise ConfigError(self.name, value, f"it must be {self.type.__name__}")
        if self.choices and value not in self.choices:
            raise ConfigError(self.name, value, f"it must be {self.allowed}")
        if self.low is not None:
            above = value > self.low if self.open_low else value >= self.low
            if not (math.isfinite(value) and above and value <= self.high):
                raise ConfigError(self.name, value, f"it must be {self.allowed}")
        return value


class Section:
    """A frozen dataclass whose fields are keys: checks each; subclasses add checks between keys."""

    NAME = ""

    def __post_init__(self):
        for each in self.declared():
            object.__setattr__(self, each.field, each.checked(getattr(self, each.field)))
        for each in self.declared():
            if not each.is_used(vars(self)):
                other, values = each.used_with
                allowed = f"only {self.path(other)}={' or '.join(values)} uses it, so it must be {each.default!r}"
                self.require(getattr(self, each.field) == each.default, each.field, allowed)

    @classmethod
    @functools.cache
    def declared(cls) -> tuple[Key, ...]:
        """The section's keys in their order; sections within it have keys of their own."""
        return tuple(Key.of(cls, field) for field in dataclasses.fields(cls) if "why" in field.metadata)

    @classmethod
    def path(cls, name: str) -> str:
        return f"{cls.NAME}.{name}" if cls.NAME else name

    def require(self, holds: bool, name: str, allowed: str) -> None:
        """Raises ConfigError that names the key and its value, unless the condition holds."""
        if not holds:
            raise ConfigError(self.path(name), getattr(self, name), allowed)


def _number(value: float) -> str:
    return f"{value:g}" if value < 1e6 else f"{int(value):,}".replace(",", "")
