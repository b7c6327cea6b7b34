"""Static HTML pages: sections of paragraphs, tables, figures and commands, in one file without scripts or links.

    page = Page("Tokens", (Section("Sources", (Paragraph("Two."), Table("Counts", ("name", "tokens"), (("a", 3),)))),))
    write(page, Path("report.html"))

A page is data until page.html.j2 renders it, which escapes every value: no text can become markup. Images are inside
the file, and browsers are told to load nothing else.
"""

import base64
import dataclasses
import functools
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from anchorjax.errors import UsageError
from anchorjax.files import write_atomically

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_ROWS = 20  # of a table that is not folded: more fill a screen
# Characters that HTML cannot hold or UTF-8 cannot encode: control characters, surrogates, noncharacters; and the marks
# that change the direction of text, with which a name could rearrange the words around it.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)


@dataclasses.dataclass(frozen=True)
class Paragraph:
    text: str


@dataclasses.dataclass(frozen=True)
class Code:
    """A command, or any other text whose line breaks and spaces count."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells below a row of heads; folded if it has more than MOST_ROWS rows.

    Numbers are aligned to the right. Ints are written with thousands' commas, floats as Python writes them.

    Raises:
      ValueError: a row has more or fewer cells than there are heads.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.heads):
                raise ValueError(f"table {self.caption!r}: {len(row)} cells {row!r} under {len(self.heads)} heads")

    @property
    def long(self) -> bool:
        return len(self.rows) > MOST_ROWS

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds nothing but numbers."""
        return [all(_is_number(row[column]) for row in self.rows) for column in range(len(self.heads))]


@dataclasses.dataclass(frozen=True)
class Figure:
    """An image inside the page.

    Attributes:
      name: the name of its file beside the page, without .png: lower-case letters, digits and underscores.
      png: the file's bytes.
      alt: describes the image to readers who cannot see it.

    Raises:
      ValueError: `png` is no PNG, `alt` is empty, or `name` is not a plain file name.
    """

    name: str
    png: bytes = dataclasses.field(repr=False)
    alt: str
    caption: str

    def __post_init__(self):
        if not self.png.startswith(PNG_SIGNATURE):
            raise ValueError(f"figure {self.name!r} is no PNG")
        if not self.alt.strip() or not re.fullmatch("[a-z0-9_]+", self.name):
            raise ValueError(f"figure {self.name!r} needs an alt text ({self.alt!r}) and a plain name")

    @property
    def source(self) -> str:
        """The file as a data: URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def width(self) -> int:
        """Pixels, from the PNG's header. Browsers reserve this space, and the style sheet makes the image fit."""
        return struct.unpack(">I", self.png[16:20])[0]

    @property
    def height(self) -> int:
        return struct.unpack(">I", self.png[20:24])[0]


@dataclasses.dataclass(frozen=True)
class Folded:
    """Blocks that are hidden until the reader opens their title."""

    title: str
    blocks: Sequence["Block"]


@dataclasses.dataclass(frozen=True)
class Side:
    """Figures side by side where the window is wide enough for two."""

    blocks: Sequence[Figure]


Block = Paragraph | Code | Table | Figure | Folded | Side


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Page:
    title: str
    sections: Sequence[Section]
    subtitle: str = ""

    @property
    def figures(self) -> list[Figure]:
        return [figure for section in self.sections for figure in _figures(section.blocks)]

    def html(self) -> str:
        return _template().render(page=self)


def write(page: Page, path: Path) -> Path:
    """Writes the page to `path`, and its figures as PNG files into the folder that is returned.

    Each file appears whole or not at all, in place of one that was there before; the page comes last. Raises
    UsageError if the disk refuses it.
    """
    folder = folder_beside(path)
    content = page.html().encode()
    try:
        if page.figures:
            folder.mkdir(exist_ok=True)
        for figure in page.figures:
            write_atomically(folder / f"{figure.name}.png", figure.png)
        write_atomically(path, content)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}; give another --out=PATH") from error
    return folder


def folder_beside(path: Path) -> Path:
    """Where `write` puts the PNG files of a page: a/report.html -> a/report_figures."""
    return path.with_name(f"{path.stem}_figures")


def place(out: str | Path) -> Path:
    """The path that `--out` names. Raises UsageError if it is no page's."""
    if not str(out).endswith((".html", ".htm")):
        raise UsageError(f"--out={out} is not allowed: it must be the path of an .html file")
    return Path(out).expanduser()


def check_place(path: Path) -> None:
    """Raises UsageError if `write` could not write there: before minutes of work, not after."""
    folder = folder_beside(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}; give another --out=PATH")
    if path.is_dir() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{path if path.is_dir() else folder} is in the way of the report; give another --out=PATH")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: {path.parent} is read-only; give another --out=PATH")


def printable(text: str) -> str:
    """`text` with U+FFFD in place of what a page cannot show."""
    return _UNPRINTABLE.sub("\ufffd", text)


def _figures(blocks: Sequence[Block]) -> list[Figure]:
    found = [_figures(block.blocks) if isinstance(block, Folded | Side) else [block] for block in blocks]
    return [block for some in found for block in some if isinstance(block, Figure)]


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    environment.filters["cell_text"] = lambda cell: f"{cell:,}" if isinstance(cell, int) else str(cell)
    for kind in (Paragraph, Code, Table, Figure, Folded, Side):
        environment.tests[kind.__name__.lower()] = functools.partial(_is, kind)
    return environment.get_template("page.html.j2")


def _is(kind: type, block: Block) -> bool:
    return isinstance(block, kind)


def _finalize(value: Any) -> Any:
    """Makes every value that the template writes printable. Text that a macro has rendered is passed through."""
    return value if hasattr(value, "__html__") else printable(str(value))


def _is_number(cell: str | int | float) -> bool:
    """Also of one that was written out, such as "12.5%", "1,024" or "0.5 ± 0.1"."""
    return (
        not isinstance(cell, str)
        or re.fullmatch(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?( ?[%×]| ± [\d.]+)?|–", cell) is not None
    )
