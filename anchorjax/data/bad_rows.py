"""Rows of an input that hold no document."""


class BadRow(Exception):
    """A row that holds no document.

    The message is the reason without details, so that reasons can be counted; `detail` is about this row.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


def utf8(text: str, key: str) -> bytes:
    """Encodes a text. Raises BadRow for a lone surrogate, which JSON can hold and UTF-8 cannot."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{key} holds a lone surrogate") from error
