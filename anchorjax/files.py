"""Files written whole, so that no reader and no kill meets half of one; and JSON files read back."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from anchorjax.errors import WorkdirError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces the file in one move; text is UTF-8. A killed process may leave a `.NAME.*.part` behind.

    Raises:
      OSError: it cannot be written. What was there before stays.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a file, or None if there is no file. Raises WorkdirError if it holds anything else."""
    try:
        content = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise WorkdirError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise WorkdirError(f"{file} cannot be read: it holds no JSON object")
    return content
