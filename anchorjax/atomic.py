"""Files that are written whole: a reader, or a kill, never meets half of one."""

import os
import secrets
from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
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
