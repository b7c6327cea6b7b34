"""Files that are written whole or not at all, and JSON objects read back.

A reader, or a process after a kill, finds the old file or the new one. Nothing is synced to disk: a loss of power soon
after a write may leave the file empty, or the old one.
"""

import json
import os
import secrets
from pathlib import Path
from typing import Any


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


def read_json(file: Path, fault: type[Exception]) -> dict[str, Any] | None:
    """Reads the JSON object in a UTF-8 file, with or without a byte order mark. Returns None if there is no file.

    Args:
      fault: the class of the error to raise if the file cannot be read or holds anything else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise fault(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise fault(f"{file} cannot be read: it holds no JSON object")
    return content
