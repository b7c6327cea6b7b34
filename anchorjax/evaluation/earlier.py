"""A result that an earlier command left: it stands beside what a new one found, or is said to be replaced."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from anchorjax.files import read_json


def beside(
    file: Path, new: Mapping[str, Any], same: Iterable[str], misfit: Callable[[dict, dict], str] = lambda *_: ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what `file` holds if it can stand beside `new`, else {}; `new` as JSON has it, with texts as keys).

    What cannot is named on stderr, as it is replaced.

    Args:
      same: keys whose values tell how a result was made; all must be equal.
      misfit: of (before, new), why they cannot be one result; "" if they can.

    Raises:
      WorkdirError: the file is damaged.
    """
    before, new = read_json(file), json.loads(json.dumps(new))
    if before is None:
        return {}, new
    changed = [name for name in same if before.get(name) != new.get(name)]
    why = "; ".join(f"{name}: {before.get(name)!r} -> {new.get(name)!r}" for name in changed) or misfit(before, new)
    if not why:
        return before, new
    print(f"{file}: the results that it held are replaced ({why}); its answers are kept", file=sys.stderr)
    return {}, new


def union(before: Mapping[str, Any], new: Mapping[str, Any], tables: Iterable[str]) -> dict[str, Any]:
    """`new`, with what its tables lack from those of `before`, at any depth."""
    return {**new, **{name: _joined(before.get(name, {}), new.get(name, {})) for name in tables if name in new}}


def _joined(before: Any, new: Any) -> Any:
    if not isinstance(before, dict) or not isinstance(new, dict):
        return new
    return before | {key: _joined(before.get(key), value) for key, value in new.items()}
