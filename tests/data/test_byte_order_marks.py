"""A byte order mark at the beginning of a file is no text: every reader leaves it out, and it is counted."""

import gzip
import json

import pytest

from anchorjax.cli import generate
from anchorjax.cli import prepare as prepare_cli
from anchorjax.data import sources as sources_lib
from anchorjax.data.sources import jsonl
from anchorjax.data.store import pieces
from anchorjax.data.store.index import Index
from anchorjax.data.text import tokenizer
from anchorjax.evaluation import texts as texts_lib
from anchorjax.evaluation.tasks import longppl
from anchorjax.evaluation.tasks.longbench import rows as longbench
from anchorjax.evaluation.tasks.longbench.tasks import TASKS
from anchorjax.evaluation.tasks.ruler import haystack, questions
from tests.data import preparing
from tests.data.preparing import BYTES, data_config

MARK = b"\xef\xbb\xbf"
ROWS = [{"text": f"row {i}"} for i in range(5)]


def read(source, **changes):
    shards = [weighted.shard for weighted in sources_lib.shards(data_config(source=source, **changes))]
    return [row for shard in shards for _, row in shard.rows()]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("part_bytes", [1, 2, 3, 4, 20, 2**28])
def test_json_lines_however_the_file_is_cut(tmp_path, monkeypatch, suffix, part_bytes):
    monkeypatch.setattr(jsonl, "PART_BYTES", part_bytes)
    data = MARK + preparing.json_lines(ROWS)
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    documents = read(f"jsonl:{path}")
    assert [document.content for document in documents] == [row["text"] for row in ROWS]
    assert [document.marked for document in documents] == [True, False, False, False, False]
    shards = [weighted.shard for weighted in sources_lib.shards(data_config(source=f"jsonl:{path}"))]
    assert [shard.place(n) for shard in shards for n, _ in shard.rows()] == [f"{path}:{i}" for i in range(1, 6)]


def test_a_mark_inside_a_file_stays_a_bad_row_or_text(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(MARK + b'{"text": "\xef\xbb\xbfone"}\n' + MARK + b'{"text": "two"}\n')
    first, second = read(f"jsonl:{path}")
    assert (first.content, str(second)) == ("\ufeffone", "begins with a byte order mark")
    path.write_bytes(MARK + MARK + b'{"text": "one"}\n')
    assert [str(row) for row in read(f"jsonl:{path}")] == ["begins with a byte order mark"]
    path.write_bytes(MARK + b"\n" + b'{"text": "one"}')
    assert [(row.content, row.marked) for row in read(f"jsonl:{path}")] == [("one", True)]
    path.write_bytes(MARK)
    assert read(f"jsonl:{path}") == []


def test_text_files_and_records(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_bytes(MARK * (i > 0) + b"book %d\r\n" % i)
    documents = read(f"text_folder:{tmp_path}")
    assert [(one.content, one.marked) for one in documents] == [
        ("book 0\r\n", False),
        ("book 1\r\n", True),
        ("book 2\r\n", True),
    ]
    path = preparing.write_array_record(tmp_path / "x.array_record", [MARK + b"a", MARK + b'{"text": "b"}', b"c"])
    assert [(one.content, one.marked) for one in read(f"array_record:{path}")] == [
        ("a", True),
        ("b", True),
        ("c", False),
    ]


def test_packed_rows(tmp_path):
    path = tmp_path / "x.jsonl"
    spans = [{"source": "a", "start": 0, "end": 2}, {"source": "b", "start": 2, "end": 3}]
    path.write_bytes(MARK + json.dumps({"input_ids": [1, 2, 3], "source": spans}).encode())
    assert [(one.source, one.marked) for one in read(f"anchor_context:{path}")] == [("a", True), ("b", False)]


def test_a_preparation_counts_them(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.txt").write_bytes(MARK + b"The Project Book, number %d.\r\n" % i)
    train, validation = preparing.prepare(tmp_path, f"text_folder:{tmp_path}", held_out_share=0.4)
    texts = preparing.texts(train) + preparing.texts(validation)
    assert sorted(texts) == [f"The Project Book, number {i}.\r\n" for i in range(8)]
    index = Index.read(train.path)
    assert (index.marks, index.bad_rows) == (8, {})
    line = "marks       byte order marks removed from the beginning of files: 8"
    assert line in prepare_cli.summary("x", {"train": index}).splitlines()


def test_a_bad_row_behind_a_mark_counts_as_a_bad_row(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(MARK + b"{}\n" + preparing.json_lines(ROWS))
    config = data_config(source=f"jsonl:{path}", bad_rows="skip")
    (weighted,) = sources_lib.shards(config)
    pieces.write(tmp_path, 0, weighted, config, BYTES)
    piece = pieces.done(tmp_path, 0)
    assert (piece["rows"], piece["bad"], piece["marks"]) == (6, {"text is missing or null": 1}, 0)


def test_texts_to_score(tmp_path, capfd):
    path = tmp_path / "x.jsonl"
    path.write_bytes(MARK + preparing.json_lines(ROWS))
    assert texts_lib.read(str(path)) == [row["text"] for row in ROWS]
    assert capfd.readouterr().err == f"--text={path}: byte order marks removed: 1\n"


def test_essays_and_questions(tmp_path, capfd):
    folder = tmp_path / "essays"
    folder.mkdir()
    (folder / "a.txt").write_bytes(MARK + b"The first.")
    (folder / "b.json").write_bytes(MARK + b'{"text": "The second."}')
    (folder / "c.md").write_bytes(b"The third.")
    assert haystack.open_essays(folder).words == ("The", "first.", "The", "second.", "The", "third.")
    assert capfd.readouterr().err == f"essays={folder}: byte order marks removed: 2\n"
    asked = {"question": "Who?", "context": [["A", ["a."]]], "supporting_facts": [["A", 0]], "answer": "B"}
    (tmp_path / "hotpot.json").write_bytes(MARK + json.dumps([asked]).encode())
    assert questions._open(tmp_path / "hotpot.json", "hotpot").documents == ("A\na.",)
    assert capfd.readouterr().err == f"hotpot={tmp_path}/hotpot.json: byte order marks removed: 1\n"


def test_key_tokens(tmp_path, capfd):
    entry = {"document": longppl.digest("some text"), "end": 9, "length": 5, "spans": [[0, 4]]}
    content = {"evaluator": "e", "rule": {}, "documents": [entry]}
    (tmp_path / "keys.json").write_bytes(MARK + json.dumps(content).encode())
    found, _ = longppl.from_json(tmp_path / "keys.json", ["some text"])
    assert list(found.values()) == [[(0, 4)]]
    assert capfd.readouterr().err == f"--key-tokens={tmp_path}/keys.json: byte order marks removed: 1\n"


def test_samples_of_longbench(tmp_path, capfd):
    sample = {"context": "c", "input": "i", "answers": ["a"], "length": 1, "all_classes": ["a"]}
    path = tmp_path / "x.jsonl"
    path.write_bytes(MARK + json.dumps(sample).encode() + b"\n")
    (row,) = longbench.read(path, TASKS["trec"])
    assert row.answers == ("a",)
    assert capfd.readouterr().err == f"{path}: byte order marks removed: 1\n"


def test_prompts(tmp_path, capfd):
    path = tmp_path / "prompt.txt"
    path.write_bytes(MARK + b"Once upon a time\r\n")
    assert generate._read(path) == "Once upon a time\n"
    assert capfd.readouterr().err == f"--prompt-file={path}: left out its byte order mark\n"


def test_configurations_of_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer_config.json").write_bytes(MARK + b'{"eos_token": "</s>"}')
    assert tokenizer.read_fields(tmp_path / "tokenizer_config.json") == {"eos_token": "</s>"}
