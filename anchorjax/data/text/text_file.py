"""Text files that are read whole: essays, prompts, sets of questions."""

import sys
from pathlib import Path

_MARK = "\ufeff"  # the byte order mark, decoded


def read(file: Path) -> tuple[str, bool]:
    """Returns (the text, whether it began with a byte order mark, which is removed). Line ends become "\\n".

    Raises OSError, or ValueError for what is not UTF-8.
    """
    text = file.read_text(encoding="utf-8")
    return text.removeprefix(_MARK), text.startswith(_MARK)


def say_marks(what: str, count: int) -> None:
    """Prints on stderr how many byte order marks were removed from `what`, if any were."""
    if count:
        print(f"{what}: byte order marks removed: {count:,}", file=sys.stderr)
