"""Pages: text stays text, elements are balanced, files appear whole."""

import os

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from anchorjax.errors import UsageError
from anchorjax.pages import figures, page
from anchorjax.pages.page import Code, Figure, Folded, Page, Paragraph, Section, Side, Table
from tests import chromium
from tests import html as pages

PNG = figures.png(figures.heat_map(np.eye(2), rows=("a", "b"), columns=("c", "d"), x_label="x", title="t"))
ODD = st.text(st.characters(exclude_categories=()), max_size=30) | st.sampled_from(
    ["<script>alert(1)</script>", "</td>", "&amp;", '" onload="x', "\ud800", "\x00", "]]>", "<!--", "\u202eabc", "a\nb"]
)


def example(*texts: str, png: bytes = PNG) -> Page:
    title, paragraph, code, head, cell, alt, caption = texts
    blocks = [Paragraph(paragraph), Code(code), Table(caption, (head, "n"), ((cell, 1234567),))]
    figures = Side([Figure("one", png, alt, caption)])
    return Page(title, (Section(title, [*blocks, Folded(caption, [Paragraph(paragraph), figures])]),), paragraph)


@hypothesis.given(st.tuples(*[ODD] * 5, st.just("what <is> \"seen\" & 'why'"), ODD))
@hypothesis.settings(max_examples=60, deadline=None)
def test_no_text_becomes_markup(texts):
    content = example(*texts).html()
    content.encode()
    found, plain = pages.read(content), pages.read(example("x", texts[1] and "x", *["x"] * 5).html())
    assert found.tags == plain.tags
    assert found.cells == [page.printable(texts[3]), "n", page.printable(texts[4]), "1,234,567"]
    assert [image["alt"] for image in found.images] == [texts[5]]


def test_a_page_loads_and_runs_nothing():
    content = example(*["x"] * 7).html()
    assert not {"script", "link", "iframe", "object", "a"} & set(pages.read(content).tags)
    assert "default-src 'none'" in content and "http:" not in content and "https:" not in content
    assert "@import" not in content and "url(" not in content


def test_columns_of_numbers_stand_to_the_right():
    rows = (("a", 5, "12.5%", "1 x 2", "0.5 ± 0.1"), ("7 b", 12, "3.0%", "4", "–"))
    content = Page("p", (Section("s", [Table("t", ("name", "n", "share", "size", "score"), rows)]),)).html()
    assert content.count('class="number"') == 3 * 3
    assert '<td class="number">12</td>' in content and "<td>7 b</td>" in content


@pytest.mark.parametrize(("rows", "folded"), [(page.MOST_ROWS, False), (page.MOST_ROWS + 1, True)])
def test_a_table_longer_than_a_screen_is_folded_once(rows, folded):
    table = Table("counts", ("name",), [(f"row {row}",) for row in range(rows)])
    alone, inside = (
        pages.read(Page("p", (Section("s", [block]),)).html()) for block in (table, Folded("numbers", [table]))
    )
    assert alone.tags.count("details") == folded and inside.tags.count("details") == 1
    assert alone.cells == inside.cells == ["name", *(f"row {row}" for row in range(rows))]
    assert (f"counts ({rows} rows)" in alone.text) == folded


@chromium.needed
def test_a_long_file_name_is_not_broken(tmp_path):
    name = "part_00000_" * 5 + ".jsonl.zst"
    heights = []
    for text in ("short", name):
        path = tmp_path / "page.html"
        page.write(Page("p", (Section("s", [Table("t", ("made from", text), (("x", "y"),))]),)), path)
        heights.append(chromium.measure(path, tmp_path, 900).tallest_head)
    assert heights[0] == heights[1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Figure("one", b"GIF89a", "alt", ""), "no PNG"),
        (lambda: Figure("one", PNG, "  ", ""), "alt text"),
        (lambda: Figure("../one", PNG, "alt", ""), "plain name"),
        (lambda: Table("t", ("a", "b"), ((1,),)), "1 cells"),
    ],
)
def test_what_no_page_may_hold(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_second_page_replaces_the_first(tmp_path):
    path = tmp_path / "report.html"
    for title in ("first", "second"):
        folder = page.write(example(title, *["x"] * 6), path)
        assert pages.read(path.read_text()).text.lstrip().startswith(title)
    assert folder == tmp_path / "report_figures"
    assert (folder / "one.png").read_bytes() == PNG
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["one.png", "report.html", "report_figures"]
    assert path.stat().st_mode & 0o044  # as the umask allows, not hidden as temporary files are


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    page.write(example(*["old"] * 7), path)
    before, replace = path.read_bytes(), os.replace

    def fail(source, target):
        if target == path:
            raise OSError("no space")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UsageError, match="cannot be written: no space"):
        page.write(example(*["new"] * 7), path)
    assert path.read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
