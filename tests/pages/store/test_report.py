"""The report as a program: what is on the page, where it lies, and what is refused before anything is written."""

import re
import shutil
import sys

import numpy as np
import pytest

from anchorjax import data
from anchorjax.cli import report as report_cli
from anchorjax.data.rows import contexts
from anchorjax.data.store import preparing as preparing_lib
from anchorjax.types import PACKINGS
from tests import chromium, tiny
from tests import html as pages
from tests.data import preparing
from tests.data.chat_templates import PLAIN, SPECIALS
from tests.evaluation import bpe

NAMES = ["<script>alert(1)</script>", "$x_$ & y", "_hidden", "日本語", "a b"]
FIGURES = ["cut", "distances", "distances_to_the_anchor", "document_lengths", "documents_per_row", "fill"]
FIGURES += ["live_tiles", "masks", "source_shares", "speed_up", "visible_contexts"]
TILES = ["--config.attention.q_tile=1024", "--config.attention.kv_tile=1024"]  # fewer than the tiny configuration's


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """250 documents of sources with odd names, and two bad rows."""
    folder = tmp_path_factory.mktemp("report")
    rows = [{"text": "word " * (i * i % 97 + 1), "source": NAMES[i % len(NAMES)]} for i in range(250)]
    inputs = preparing.write_jsonl(folder / "in.jsonl", rows)
    inputs.write_bytes(b"\xef\xbb\xbf" + inputs.read_bytes() + b'{"source": "<b>"}\n' * 2)
    path = folder / "store"
    source = {"source": f"jsonl:{inputs}", "bad_rows": "skip", "held_out_share": 0.2, "max_bad_share": 0.1}
    return path, preparing_lib.prepare(preparing.data_config(store=str(path), **source))


@pytest.fixture
def report(tmp_path, monkeypatch, capfd):
    """`report(*arguments)`: exit code, stdout and stderr of a report with the tiny configuration."""

    def run(*arguments):
        tiny.write_file(tmp_path / "tiny.py")
        arguments = ["--store", f"--config={tmp_path / 'tiny.py'}", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["anchorjax", "report", *arguments])
        code = report_cli.main(arguments)
        return code, *capfd.readouterr()

    return run


def test_report_of_a_store(store, report, tmp_path):
    path, indices = store
    train = indices["train"]
    code, out, err = report(f"--config.data.store={path}", "--config.data.interleave=2", *TILES)
    assert (code, out, err) == (0, f"written to {path}/report.html\n", "")
    page = pages.read((path / "report.html").read_text())
    assert not {"script", "b", "a", "link"} & set(page.tags)
    assert len(page.images) == len(FIGURES)
    for image in page.images:
        assert image["alt"] and not pages.is_blank(pages.pixels(image))
    folder = path / "report_figures"
    assert sorted(file.name for file in folder.iterdir()) == [f"{name}.png" for name in FIGURES]
    for name, documents, tokens in zip(train.source_names, train.source_documents, train.source_tokens, strict=True):
        at = page.cells.index(name)
        assert page.cells[at + 1 : at + 3] == [f"{documents:,}", f"{tokens:,}"]
    for word in (
        f"{train.num_tokens:,} tokens",
        "Modelled from tiles, not measured",
        "Every row begins with one anchor",
        "bytes, 259 ids",
        "2 of 252",
        "Marks: byte order marks removed from the beginning of files: 1.",
        "text is missing or null",
        "in.jsonl:251",
        "uint16",
        "anchorjax report --store",
        "--config.data.interleave=2",
    ):
        assert word in page.text, word

    code, *_ = report(f"--config.data.store={path}", "--config.data.seq_len=128", *TILES)
    assert code == 0 and "--config.data.seq_len=128" in (path / "report.html").read_text()
    assert sorted(file.name for file in path.iterdir()) == ["report.html", "report_figures", "train", "validation"]


@chromium.needed
def test_a_browser_shows_it_and_a_phone_too(store, report, tmp_path):
    out = tmp_path / "page.html"
    assert report(f"--config.data.store={store[0]}", f"--out={out}", *TILES)[0] == 0
    seen, sizes = chromium.look(out, tmp_path), chromium.measure(out, tmp_path, 390)
    assert seen.console == [] and pages.colors(seen.pixels) > 200
    assert sizes.needed == sizes.window == 390 and sizes.tallest_head < 120


@pytest.mark.parametrize(
    ("mask", "packing"), [("anchor", "concat_split"), ("intra_doc", "best_fit"), ("full", "first_fit")]
)
def test_the_same_configuration_gives_the_same_page(store, report, tmp_path, mask, packing):
    out = tmp_path / "page.html"
    arguments = [
        f"--config.data.{key}={value}" for key, value in (("mask", mask), ("packing", packing), ("tags", True))
    ]
    contents = []
    for _ in range(2):
        assert report(f"--config.data.store={store[0]}", f"--out={out}", *arguments, *TILES)[0] == 0
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]
    assert (out.parent / "page_figures" / "masks.png").exists()


@pytest.mark.parametrize("mask", ["anchor", "intra_doc", "full"])
def test_visible_contexts_are_those_of_training(store, report, tmp_path, mask):
    out = tmp_path / "page.html"
    changes = [f"--config.data.mask={mask}", "--config.data.seq_len=1024"]  # twice the longest document
    assert report(f"--config.data.store={store[0]}", f"--out={out}", *changes, *TILES)[0] == 0
    cells, counted = pages.read(out.read_text()).cells, []
    for packing in PACKINGS:
        config = tiny.config(data__store=str(store[0]), data__mask=mask, data__seq_len=1024, data__packing=packing)
        tokenizer = data.load_tokenizer(config.data)
        stored = data.load_store(config.data, "train", tokenizer)
        packer = data.row_packer(stored, tokenizer, config.data, config.seed)
        counted.append(packer.targets_by_context())
    last = max(int(np.flatnonzero(targets_K).max()) for targets_K in counted)
    at = cells.index("keys") + 7
    for k in range(last + 1):
        bucket, *numbers = cells[at + 7 * k : at + 7 * (k + 1)]
        shares = [contexts.name_share(targets_K[k] / targets_K.sum()) for targets_K in counted]
        assert bucket == contexts.name_bucket(k)
        assert numbers[::2] == [f"{targets_K[k]:,}" for targets_K in counted] and numbers[1::2] == shares
    assert cells[at + 7 * (last + 1)] == "row length", "the next table begins: empty buckets at the end are left out"


def test_report_of_a_source_in_memory(report, tmp_path, data_dir):
    out = tmp_path / "page.html"
    code, printed, _ = report(f"--out={out}", f"--config.data.data_dir={data_dir}", *TILES)
    assert (code, printed) == (0, f"written to {out}\n")
    page = pages.read(out.read_text())
    assert "public_domain" in page.text and "kjv" in page.cells
    assert {"4K", "8K", "512K", "1M"} <= set(page.cells)
    assert not [cell for cell in page.cells if re.fullmatch(r"[\d,]+\.0", cell)], "a median that is whole"


def test_a_row_longer_than_the_store_and_one_with_too_many_tiles(store, report, tmp_path):
    out = tmp_path / "page.html"
    long = ["--config.data.seq_len=2097152", "--config.attention.q_tile=128", "--config.attention.kv_tile=1024"]
    assert report(f"--config.data.store={store[0]}", f"--out={out}", *long)[0] == 0
    assert "more tiles than attention's lists can hold: 2M." in pages.read(out.read_text()).text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.data.store=nowhere"], ["nowhere/train is not a token store"]),
        ([], ["--out=PATH is missing", "config.data.store"]),
        (["--config.data.store=STORE", "--out=page.txt"], ["--out=page.txt", ".html"]),
        (["--config.data.store=STORE", "--out=no/page.html"], ["no/page.html cannot be written", "no folder no"]),
        (["--config.data.store=STORE", "--out=taken.html"], ["taken.html is in the way"]),
        (["--config.data.store=STORE", "--config.data.seq_len=1"], ["config.data.seq_len=1"]),
        (["--config.data.store=STORE", "--config.attention.q_tile=4"], ["config.attention.q_tile=4", "8 or more"]),
        (["--config.data.store=STORE", "--config.data.tokenizer=y"], ["config.data.tokenizer='y'"]),
        (["--config.data.store=STORE", "--store=maybe"], ["store"]),
        (["--out=x.html", "--config.data.source=jsonl:y"], ["config.data.source='jsonl:y'", "token store first"]),
    ],
)
def test_bad_arguments_are_refused_in_one_line(store, report, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.html").mkdir()
    before = {file: file.stat().st_mtime_ns for file in store[0].rglob("*")}
    code, out, err = report(*(argument.replace("STORE", str(store[0])) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("anchorjax report: ") and err.count("\n") == 1
    assert all(word in err for word in words), err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["taken.html", "tiny.py"]
    assert before == {file: file.stat().st_mtime_ns for file in store[0].rglob("*")}


def test_a_damaged_store_is_refused(store, report, tmp_path):
    copy = shutil.copytree(store[0], tmp_path / "copy", ignore=shutil.ignore_patterns("report*"))
    with open(copy / "train" / "tokens.bin", "ab") as file:
        file.write(b"x")
    code, out, err = report(f"--config.data.store={copy}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "tokens.bin is damaged" in err and not (copy / "report.html").exists()


def test_a_read_only_store_asks_for_another_place(store, report, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    code, out, err = report(f"--config.data.store={store[0]}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is read-only; give another --out=PATH" in err


def test_report_of_conversations(report, tmp_path):
    """The page says what share of the tokens is trained on, and counts those targets alone."""
    directory = bpe.write(tmp_path, PLAIN["chatml"], SPECIALS)
    said = [{"role": role, "content": role * 9} for role in ("user", "assistant")]
    rows = [{"chat": [*said, {"role": "user", "content": f"{i}"}]} for i in range(60)]
    source = f"jsonl:{preparing.write_jsonl(tmp_path / 'in.jsonl', rows)}"
    keys = {"tokenizer": str(directory), "messages_key": "chat", "held_out_share": 0.2}
    train, _ = preparing.prepare(tmp_path, source, **keys)
    code, _, err = report(
        f"--config.data.store={tmp_path / 'store'}",
        f"--config.data.tokenizer={directory}",
        "--config.data.messages_key=chat",
        "--config.model.vocab_size=3072",
        *TILES,
    )
    assert (code, err) == (0, "")
    text = (tmp_path / "store/report.html").read_text()
    trained, tokens = int(train.trained.sum()), train.num_tokens
    assert f"Trained: {trained:,} of {tokens:,} tokens, the assistant&#39;s: {trained / tokens:.1%}." in text
    assert 0 < trained < tokens / 2
