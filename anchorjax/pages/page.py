"""Static HTML pages: sections of paragraphs, tables, figures and commands, in one file without scripts or links.

    page = Page("Tokens", (Section("Sources", (Paragraph("Two."), Table("Counts", ("name", "tokens"), (("a", 3),)))),))
    write(page, Path("report.html"))

A page is data until it is rendered, and rendered as a tree of elements: no text can become markup. Images are inside
the file, and browsers are told to load nothing else.
"""

import base64
import dataclasses
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from anchorjax.errors import UsageError
from anchorjax.files import write_atomically

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What HTML cannot hold, or UTF-8 cannot encode: control characters, surrogates, noncharacters; and the marks that turn
# the direction of text, with which a name could rearrange the words around it.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #5c6370; --line: #d5d8dd; --paper: #fff; --shade: #f4f5f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e5e8; --faint: #a0a6b0; --line: #3c4149; --paper: #17191c; --shade: #22252a }
}
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line) }
.subtitle, caption, figcaption { color: var(--faint) }
.subtitle { margin: .25rem 0 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
caption, figcaption { text-align: left; font-size: .9rem; padding: .25rem 0 }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; max-width: 24rem }
th { font-weight: 600; vertical-align: bottom }
.number { text-align: right; white-space: nowrap }
details { margin: .75rem 0 }
summary { cursor: pointer }
figure { margin: 1.25rem 0 }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 1.5rem }
.side figure { margin: .75rem 0 }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px }
@media (max-width: 40rem) { img { max-width: none; width: 34rem } .side img { width: 26rem } }
pre { padding: .75rem 1rem; background: var(--shade); white-space: pre-wrap; font-size: .9rem }
"""


@dataclasses.dataclass(frozen=True)
class Paragraph:
    text: str

    def render(self) -> Element:
        return _element("p", self.text)


@dataclasses.dataclass(frozen=True)
class Code:
    """A command, or anything else whose line breaks and spaces count."""

    text: str

    def render(self) -> Element:
        pre = Element("pre")
        pre.append(_element("code", self.text))
        return pre


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under their heads. Numbers stand to the right: ints get thousands' commas, floats come as given.

    Raises:
      ValueError: a row that has more or fewer cells than there are heads.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.heads):
                raise ValueError(f"table {self.caption!r}: {len(row)} cells {row!r} under {len(self.heads)} heads")

    def render(self) -> Element:
        scroll = Element("div", {"class": "scroll"})
        table = ElementTree.SubElement(scroll, "table")
        table.append(_element("caption", self.caption))
        numeric = [all(_is_number(row[column]) for row in self.rows) for column in range(len(self.heads))]
        head = ElementTree.SubElement(ElementTree.SubElement(table, "thead"), "tr")
        for text, right in zip(self.heads, numeric, strict=True):
            head.append(_element("th", text, {"scope": "col"} | ({"class": "number"} if right else {})))
        body = ElementTree.SubElement(table, "tbody")
        for row in self.rows:
            line = ElementTree.SubElement(body, "tr")
            for cell, right in zip(row, numeric, strict=True):
                text = f"{cell:,}" if isinstance(cell, int) else str(cell)
                line.append(_element("td", text, {"class": "number"} if right else {}))
        return scroll


@dataclasses.dataclass(frozen=True)
class Figure:
    """An image inside the page.

    Attributes:
      name: of its file beside the page, without .png: lower-case letters, digits and underscores.
      png: the file's bytes.
      alt: says what there is to see, to those who do not.

    Raises:
      ValueError: no PNG, no alt text, or a name that is no plain file name.
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

    def render(self) -> Element:
        width, height = struct.unpack(">II", self.png[16:24])
        source = "data:image/png;base64," + base64.b64encode(self.png).decode()
        figure = Element("figure")
        size = {"width": str(width), "height": str(height)}  # of the space kept for it; the stylesheet makes it fit
        scroll = ElementTree.SubElement(figure, "div", {"class": "scroll"})
        ElementTree.SubElement(scroll, "img", {"src": source, "alt": printable(self.alt)} | size)
        figure.append(_element("figcaption", self.caption))
        return figure


@dataclasses.dataclass(frozen=True)
class Folded:
    """Blocks under a line that opens them: what few want to read."""

    title: str
    blocks: Sequence["Block"]

    def render(self) -> Element:
        details = Element("details")
        details.append(_element("summary", self.title))
        details.extend(block.render() for block in self.blocks)
        return details


@dataclasses.dataclass(frozen=True)
class Side:
    """Figures side by side where the window is wide enough for two."""

    blocks: Sequence[Figure]

    def render(self) -> Element:
        side = Element("div", {"class": "side"})
        side.extend(figure.render() for figure in self.blocks)
        return side


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
        root = Element("html", {"lang": "en"})
        head = ElementTree.SubElement(root, "head")
        ElementTree.SubElement(head, "meta", {"charset": "utf-8"})
        ElementTree.SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY})
        ElementTree.SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
        head.append(_element("title", self.title))
        ElementTree.SubElement(head, "style").text = _STYLE
        main = ElementTree.SubElement(ElementTree.SubElement(root, "body"), "main")
        main.append(_element("h1", self.title))
        if self.subtitle:
            main.append(_element("p", self.subtitle, {"class": "subtitle"}))
        for section in self.sections:
            part = ElementTree.SubElement(main, "section")
            part.append(_element("h2", section.title))
            part.extend(block.render() for block in section.blocks)
        return "<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"


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


def _element(tag: str, text: str, attributes: dict[str, str] | None = None) -> Element:
    element = Element(tag, attributes or {})
    element.text = printable(text)
    return element


def _is_number(cell: str | int | float) -> bool:
    """Also of one that was written out, such as "12.5%", "1,024" or "0.5 ± 0.1"."""
    return (
        not isinstance(cell, str)
        or re.fullmatch(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?( ?[%×]| ± [\d.]+)?|–", cell) is not None
    )
