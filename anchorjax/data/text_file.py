"""Text files that are read whole: essays, prompts, sets of questions."""

from pathlib import Path

_MARK = "\ufeff"  # the byte order mark, decoded


def read(file: Path) -> tuple[str, bool]:
    """(the text, whether a byte order mark stood at its beginning: it is left out). Line ends become "\\n".

    Raises OSError, or ValueError for what is not UTF-8.
    """
    text = file.read_text(encoding="utf-8")
    return text.removeprefix(_MARK), text.startswith(_MARK)
