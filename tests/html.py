"""Reads a static page back: its elements, texts and images."""

import base64
import dataclasses
import html.parser
import io

import numpy as np
from PIL import Image

_VOID = {"meta", "img", "br", "hr", "link", "input"}


@dataclasses.dataclass
class Read(html.parser.HTMLParser):
    """Raises AssertionError for an element that is not closed, or closed out of turn."""

    tags: list[str] = dataclasses.field(default_factory=list)
    images: list[dict[str, str]] = dataclasses.field(default_factory=list)
    cells: list[str] = dataclasses.field(default_factory=list)
    text: str = ""

    def __post_init__(self):
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.cells[-1] += data


def read(content: str) -> Read:
    assert content.startswith("<!DOCTYPE html>")
    page = Read()
    page.feed(content)
    page.close()
    assert not page._open, f"never closed: {page._open}"
    return page


def pixels(image: dict[str, str]) -> np.ndarray:
    """uint8 [height, width, 3] of an <img> that holds its own data."""
    start, _, content = image["src"].partition(",")
    assert start == "data:image/png;base64"
    return decode(base64.b64decode(content, validate=True))


def decode(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def colors(pixels_HWC: np.ndarray) -> int:
    """How many different ones there are."""
    return len(np.unique(pixels_HWC.reshape(-1, 3) @ np.array([1, 2**8, 2**16])))


def is_blank(pixels_HWC: np.ndarray) -> bool:
    return colors(pixels_HWC) < 3
