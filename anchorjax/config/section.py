"""What every section of the configuration is made of: fields with types, ranges and choices."""

import dataclasses
import math
from typing import Any

from anchorjax.errors import ConfigError

MAX_INT = 2**31 - 1  # steps, positions and sizes are int32 on the device


def number(low: float, high: float = math.inf, *, open_low: bool = False) -> Any:
    """A field whose value must lie in [low, high] (or (low, high])."""
    return dataclasses.field(metadata={"low": low, "high": high, "open_low": open_low})


def choice(*names: str) -> Any:
    """A field whose value must be one of the names."""
    return dataclasses.field(metadata={"choices": names})


class Section:
    """Checks types and ranges of a dataclass's fields; subclasses add checks between fields."""

    NAME = ""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            self._check(field, getattr(self, field.name))

    def _check(self, field: dataclasses.Field, value: Any) -> None:
        key, rule = self.key(field.name), field.metadata
        if type(value) is int and abs(value) > MAX_INT:
            raise ConfigError(key, value, f"it must be at most {MAX_INT} in size")
        if (field.type is float and type(value) is int) or (field.type is tuple and type(value) is list):
            value = field.type(value)  # a whole number; a list from JSON
            object.__setattr__(self, field.name, value)
        if type(value) is not field.type:
            raise ConfigError(key, value, f"it must be {field.type.__name__}")
        if "choices" in rule and value not in rule["choices"]:
            raise ConfigError(key, value, f"it must be one of {', '.join(rule['choices'])}")
        if "low" in rule:
            above = value > rule["low"] if rule["open_low"] else value >= rule["low"]
            if not (math.isfinite(value) and above and value <= rule["high"]):
                low = f"above {rule['low']:g}" if rule["open_low"] else f"at least {rule['low']:g}"
                high = f" and at most {rule['high']:g}" if rule["high"] < math.inf else ""
                raise ConfigError(key, value, f"it must be finite, {low}{high}")

    def key(self, name: str) -> str:
        return f"{self.NAME}.{name}" if self.NAME else name

    def require(self, holds: bool, name: str, allowed: str) -> None:
        if not holds:
            raise ConfigError(self.key(name), getattr(self, name), allowed)
