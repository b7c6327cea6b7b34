"""Text files that are read whole: essays, prompts, sets of questions."""

import sys
from pathlib import Path

_MARK = "\ufeff"  # the byte order mark, decoded


def read(file: Path) -> tuple[str, bool]:
    """(the text, whether a byte order mark stood at its beginning: it is left out). Line ends become "\\n".

    Raises OSError, or ValueError for what is not UTF-8.
    """
    text = file.read_text(encoding="utf-8")
    return text.removeprefix(_MARK), text.startswith(_MARK)


def say_marks(what: str, count: int) -> None:
    """Says on stderr how many byte order marks were left out of `what`, if any were."""
    if count:
        print(f"{what}: left out byte order marks: {count:,}", file=sys.stderr)
