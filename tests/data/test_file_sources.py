"""Every kind of file gives back the documents that were written into it; every bad row is named or counted."""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.data import sources as sources_lib
from anchorjax.data.documents import BadRow, Document, Fields
from anchorjax.data.sources import array_record, jsonl, tables, text_folder
from anchorjax.data.store import pieces, remarks
from anchorjax.data.store.index import Index
from anchorjax.errors import ConfigError, DataError
from anchorjax.evaluation import texts as texts_lib
from tests.data import preparing
from tests.data.preparing import BYTES, data_config

ROWS = [{"text": f"text {i} \u00e9\u4e2d\U0001f600\n", "source": "ab"[i % 2], "n": i} for i in range(20)]


def write_file(kind, path, rows):
    """A file of `rows`; returns the path."""
    if kind in ("jsonl", "jsonl.gz", "jsonl.zst"):
        return preparing.write_jsonl(path / f"x.{kind}", rows)
    if kind == "parquet":
        return preparing.write_parquet(path / "x.parquet", rows)
    if kind.startswith("arrow"):
        return preparing.write_arrow(path / "x.arrow", rows, streaming=kind == "arrow")
    return preparing.write_array_record(path / "x.array_record", [json.dumps(row).encode() for row in rows])


KINDS = {
    **dict.fromkeys(("jsonl", "jsonl.gz", "jsonl.zst"), "jsonl"),
    **dict.fromkeys(("parquet", "arrow", "arrow_file"), "parquet"),
    "array_record": "array_record",
}


@pytest.fixture(params=[2**28, 1], ids=["whole", "parts"])
def cut(request, monkeypatch):
    """Files as one part, and in as many as possible."""
    monkeypatch.setattr(jsonl, "PART_BYTES", 7 if request.param == 1 else request.param)
    for module, name in ((tables, "PART_ROWS"), (array_record, "PART_RECORDS"), (text_folder, "PART_FILES")):
        monkeypatch.setattr(module, name, request.param)


def read(source, **changes):
    """(place, document or reason) of every row."""
    found = []
    for weighted in sources_lib.shards(data_config(source=source, **changes)):
        for number, row in weighted.shard.rows():
            found.append((weighted.shard.place(number), str(row) if isinstance(row, BadRow) else row))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(tmp_path, cut, kind):
    path = write_file(kind, tmp_path, ROWS)
    rows = read(f"{KINDS[kind]}:{path}")
    assert [row for _, row in rows] == [Document(row["text"], row["source"]) for row in ROWS]
    first = 1 if kind.startswith("jsonl") else 0
    assert [place for place, _ in rows] == [f"{path}:{number}" for number in range(first, first + len(ROWS))]


def test_round_trip_of_a_text_folder(tmp_path, cut):
    for i, row in enumerate(ROWS):
        folder = tmp_path / "root" / row["source"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02d}.txt").write_bytes(row["text"].encode())
    (tmp_path / "root" / "notes.pdf").write_text("not a text")
    rows = read(f"text_folder:{tmp_path / 'root'}")
    ordered = sorted(ROWS, key=lambda row: (row["source"], row["n"]))
    assert [row for _, row in rows] == [Document(row["text"], row["source"]) for row in ordered]
    assert rows[0][0] == f"{tmp_path / 'root' / 'a' / '00.txt'}:1"


def test_records_that_are_plain_texts(tmp_path):
    path = preparing.write_array_record(tmp_path / "x.array_record", [b"plain", b' {"text": "in JSON"}', b"\xff"])
    rows = [row for _, row in read(f"array_record:{path}", text_key="text")]
    assert rows == [Document("plain", "x"), Document("in JSON", "x"), "not UTF-8"]


def test_keys_lead_into_objects(tmp_path):
    rows = [{"body": {"content": "x"}, "meta": {"set": "books"}}, {"body": {"content": "y"}, "meta": None}]
    for kind in ("jsonl", "parquet", "array_record"):
        path = write_file(kind, tmp_path, rows)
        found = read(f"{kind}:{path}", text_key="body.content", source_key="meta.set")
        assert [row for _, row in found] == [Document("x", "books"), Document("y", "x")]


lines = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.just("\n") | st.just("\r"))


@settings(max_examples=200, deadline=None)
@given(lines, st.integers(1, 40), st.booleans())
def test_any_cut_of_a_file_reads_each_line_once_with_its_number(tmp_path_factory, texts, part_bytes, ends):
    path = tmp_path_factory.mktemp("cut") / "x.jsonl"
    data = b"".join(json.dumps(text).encode() + b"\n" if text != "\n" else b"\n" for text in texts)
    path.write_bytes(data if ends else data.removesuffix(b"\n"))
    expected = [(f"{path}:{i}", text) for i, text in enumerate(texts, 1) if text != "\n"]
    found = []
    for begin in range(0, max(1, path.stat().st_size), part_bytes):
        part = jsonl.Lines(path, begin, begin + part_bytes)
        found += [(part.place(number), value) for number, value in jsonl.values(part, 2**20)]
    assert found == expected


# --- Bad rows ---

BAD_LINES = {
    "bad JSON": (b'{"text": "x"', "not JSON"),
    "two values": (b'{"text": "x"} {"text": "y"}', "not JSON"),
    "bad UTF-8": (b'{"text": "\xff\xfe"}', "not UTF-8"),
    "overlong UTF-8": (b'{"text": "\xc0\x80"}', "not UTF-8"),
    "byte order mark": (b'\xef\xbb\xbf{"text": "x"}', "begins with a byte order mark"),
    "UTF-16": ('{"text": "x"}'.encode("utf-16-be"), "a NUL byte"),
    "NUL byte": (b'{"text": "x\0"}', "a NUL byte"),
    "NUL escape": (b'{"text": "x\\u0000"}', "text holds a NUL character"),
    "array": (b'["text"]', "not an object"),
    "string": (b'"text"', "not an object"),
    "null": (b"null", "not an object"),
    "no text": (b'{"title": "x"}', "text is missing or null"),
    "null text": (b'{"text": null}', "text is missing or null"),
    "empty text": (b'{"text": ""}', "text is empty"),
    "blank text": (b'{"text": " \\n\\t"}', "text is empty"),
    "number": (b'{"text": 5}', "text is not a string"),
    "list": (b'{"text": ["x"]}', "text is not a string"),
    "lone surrogate": (b'{"text": "a\\ud800"}', "text holds a lone surrogate"),
    "lone surrogate in the source": (
        b'{"text": "a", "source": "b\\udfff"}',
        "the name of the source holds a lone surrogate",
    ),
    "deep": (b'{"text": "x", "y": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "NaN": (b'{"text": "x", "score": NaN}', "NaN is not JSON"),
    "Infinity": (b'{"text": "x", "score": -Infinity}', "-Infinity is not JSON"),
    "digits": (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "not JSON"),
    "long": (b'{"text": "' + b"x" * 2**18 + b'"}', "longer than data.max_row_bytes=262144"),
}
GOOD = [b'{"text": "good one"}', b'{"text": "good two"}']


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_row_is_named_by_file_and_line_or_counted(tmp_path, name, suffix):
    line, reason = BAD_LINES[name]
    path = tmp_path / f"x.{suffix}"
    data = b"\n".join([GOOD[0], b"", line, GOOD[1]])
    path.write_bytes(gzip.compress(data) if suffix == "jsonl.gz" else data)
    options = {"source": f"jsonl:{path}", "max_row_bytes": 2**18}
    (weighted,) = sources_lib.shards(data_config(**options))
    with pytest.raises(DataError) as error:
        pieces.write(tmp_path, 0, weighted, data_config(**options), BYTES)
    detail = " (data.text_key='text' names nothing in the row, which has title)" if name == "no text" else ""
    assert str(error.value).startswith(f"{path}:3: {reason}{detail}; data.bad_rows='skip'")
    assert pieces.done(tmp_path, 0) is None
    pieces.write(tmp_path, 0, weighted, data_config(**options, bad_rows="skip", held_out_share=0.0), BYTES)
    piece = pieces.done(tmp_path, 0)
    assert (piece["rows"], piece["bad"], piece["places"]) == (3, {reason: 1}, {reason: [f"{path}:3"]})
    tokens = np.fromfile(pieces.file_of(tmp_path, 0, "train", "tokens"), "<u2")
    assert BYTES.decode(tokens) == "good onegood two"


def test_the_surroundings_of_a_bad_row_are_kept_however_the_file_is_cut(tmp_path, cut):
    path = tmp_path / "x.jsonl"
    lines = [line for bad, _ in BAD_LINES.values() for line in (GOOD[0], bad)]
    path.write_bytes(b"\n".join([*lines[:-1], b"x" * 9000, GOOD[1]]))
    rows = read(f"jsonl:{path}", max_row_bytes=300) if jsonl.PART_BYTES > 7 else None
    if rows is None:  # a part for every 7 bytes would be slow for the long lines
        size = path.stat().st_size
        found = [jsonl.Lines(path, begin, min(begin + 997, size)) for begin in range(0, size, 997)]
        values = [(part.place(n), value) for part in found for n, value in jsonl.values(part, 300)]
        rows = [(place, str(value) if isinstance(value, BadRow) else value) for place, value in values]
    assert [place for place, _ in rows] == [f"{path}:{i}" for i in range(1, len(lines) + 2)]
    assert sum(not isinstance(row, str) for _, row in rows) >= len(BAD_LINES)


def test_bad_values_in_a_table(tmp_path):
    texts = pyarrow.array([b"good", b"\xff", None, b"", b"a\0"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "x.parquet")
    rows = [row for _, row in read(f"parquet:{tmp_path / 'x.parquet'}")]
    reasons = ["not UTF-8", "text is missing or null", "text is empty", "text holds a NUL character"]
    assert rows == [Document("good", "x"), *reasons]


def test_a_bad_text_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt").write_bytes(b"x" * 101)
    rows = read(f"text_folder:{tmp_path}", max_row_bytes=100)
    assert rows == [
        (f"{tmp_path / 'a.txt'}:1", "not UTF-8"),
        (f"{tmp_path / 'b.txt'}:1", "the file is empty"),
        (f"{tmp_path / 'c.txt'}:1", "longer than data.max_row_bytes=100"),
    ]


# --- Files that are damaged, or not there ---


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet", "arrow", "array_record"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_file_is_refused_by_name_whatever_the_policy(tmp_path, kind, damage):
    rng = np.random.default_rng(0)
    rows = [{"text": rng.bytes(500).hex(), "source": "a"} for _ in range(200)]
    path = write_file(kind, tmp_path, rows)
    data = path.read_bytes()
    if damage == "flipped":
        if kind in ("arrow", "parquet"):
            pytest.skip("these formats have no checksums of their own")
        data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x55]) + data[len(data) // 2 + 1 :]
    path.write_bytes({"cut": data[: len(data) * 2 // 3], "flipped": data, "empty": b""}[damage])
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        preparing.prepare(tmp_path, f"{KINDS[kind]}:{path}", bad_rows="skip", max_bad_share=1.0)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("jsonl:nowhere/*.jsonl", "there is no file 'nowhere/*.jsonl' (in a folder, those count that end in .jsonl"),
        ("jsonl:", "there is no file ''"),
        ("jsonl:{0},0", "the weight 0 must be above 0 and at most 100"),
        ("jsonl:{0},nan", "the weight nan must be above 0"),
        ("jsonl:{0},x", "the weight 'x' is not a number"),
        ("jsonl:{0};jsonl:{0}", "is named 2 times; give it a weight instead"),
        ("csv:{0}", "unknown source 'csv:"),
        ("jsonl:{0};", "unknown source ''"),
    ],
)
def test_impossible_source_is_refused(tmp_path, source, message):
    path = preparing.write_jsonl(tmp_path / "x.jsonl", ROWS)
    with pytest.raises(ConfigError) as error:
        preparing.prepare(tmp_path, source.format(path))
    assert error.value.key == "data.source" and message in str(error.value)


def test_table_without_the_column_is_refused(tmp_path):
    path = preparing.write_parquet(tmp_path / "x.parquet", [{"content": "x", "id": 1}])
    with pytest.raises(DataError, match=f"{path} has no column 'text', only content, id"):
        preparing.prepare(tmp_path, f"parquet:{path}")


# --- Columns and keys ---


def write_table(path, **columns):
    table = pyarrow.table(columns)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.fixture(params=["x.parquet", "x.arrow"])
def table_file(request, tmp_path):
    return tmp_path / request.param


def test_a_column_is_found_by_its_name_before_a_dot_leads_into_one(table_file):
    structs = [{"text": "inner", "name": "s"}, {"text": "other", "name": None}]
    path = write_table(table_file, **{"meta.text": ["a", "b"], "meta": structs, "x.y": [{"z.w": "c"}, {"z.w": "d"}]})
    rows = [row for _, row in read(f"parquet:{path}", text_key="meta.text", source_key="meta.name")]
    assert rows == [Document("a", "s"), Document("b", "x")]
    assert [row for _, row in read(f"parquet:{path}", text_key="x.y.z.w")] == [Document("c", "x"), Document("d", "x")]


def test_a_key_with_a_dot_in_json(tmp_path):
    rows = [{"meta.text": "a", "meta": {"text": "b"}, "m.s": {"n": "books"}}, {"meta": {"text": "b"}}]
    path = preparing.write_jsonl(tmp_path / "x.jsonl", rows)
    found = [row for _, row in read(f"jsonl:{path}", text_key="meta.text", source_key="m.s.n")]
    assert found == [Document("a", "books"), Document("b", "x")]


def test_bytes_that_are_utf8_are_text(table_file):
    texts = pyarrow.array(["é".encode(), b"\xff", b"\xef\xbb\xbfb", None, b""], pyarrow.binary())
    path = write_table(table_file, text=texts, source=pyarrow.array([b"s"] * 5, pyarrow.large_binary()))
    rows = [row for _, row in read(f"parquet:{path}")]
    assert rows[:2] + rows[3:] == [Document("é", "s"), "not UTF-8", "text is missing or null", "text is empty"]
    assert (rows[2], rows[2].marked) == (Document("b", "s"), True)


@pytest.mark.parametrize("twice", ["text", "source"])
def test_two_columns_of_a_name_are_refused(table_file, twice):
    columns = {"text": ["a"], "source": ["b"], "n": [1]}
    names = [*columns, twice]
    table = pyarrow.Table.from_arrays([pyarrow.array(columns[name]) for name in names], names=names)
    if table_file.suffix == ".parquet":
        pyarrow.parquet.write_table(table, table_file)
    else:
        with pyarrow.ipc.new_stream(str(table_file), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=f"{table_file} has 2 columns named '{twice}'; rename all but one"):
        read(f"parquet:{table_file}")
    if twice == "source":  # the others can be read
        assert len(read(f"parquet:{table_file}", source_key="n")) == 1


def test_two_fields_of_a_name_in_an_object_are_a_bad_row(tmp_path):
    inner = pyarrow.StructArray.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["a", "a"])
    path = write_table(tmp_path / "x.parquet", text=["t"], meta=inner)
    ((_, reason),) = read(f"parquet:{path}", source_key="meta.a")
    assert reason.startswith("an object that cannot be read (")


def prepared(tmp_path, rows, **changes):
    """What the summary says of sources, beside their names."""
    path = preparing.write_parquet(tmp_path / "x.parquet", rows)
    train, _ = preparing.prepare(tmp_path, f"parquet:{path}", **changes)
    index = Index.read(train.path)
    return [text for what, text in remarks.of(index) if what == "no source"]


@pytest.mark.parametrize(
    ("values", "key", "said"),
    [
        (["web"] * 40, "source", []),
        (["web"] * 40, "sorce", ["sorce is missing or null in 40 of 40 rows"]),
        ([None] * 40, "source", []),  # as of files without sources, which is ordinary
        (["web", None] * 20, "source", ["source is missing or null in 20 of 40 rows"]),
        (list(range(40)), "source", ["source is not a string in 40 of 40 rows"]),
    ],
)
def test_a_source_key_that_leads_nowhere_is_said(tmp_path, values, key, said):
    rows = [{"text": f"text {i}", "source": value} for i, value in enumerate(values)]
    found = prepared(tmp_path, rows, source_key=key)
    assert [text.partition(" (data.source_key)")[0] for text in found] == said


@pytest.mark.parametrize(
    ("row", "key", "help"),
    [
        ({"title": "a", "content": "b"}, "text", "names nothing in the row, which has title, content)"),
        ({"Text": "a", "id": 1}, "text", "which has Text, id; did you mean 'Text'?)"),
        ({"doc": {"text": "a"}, "n": 1}, "text", "which has doc, doc.text, n; did you mean 'doc.text'?)"),
        ({"content": "a"}, "contents", "which has content; did you mean 'content'?)"),
        ({"meta": {"body": "a"}}, "meta.bdy", "which has meta, meta.body; did you mean 'meta.body'?)"),
        ({str(i): i for i in range(20)}, "text", "which has 0, 1, 2, 3, 4, 5, 6, 7, ...)"),
        ({}, "text", "which has no keys)"),
    ],
)
def test_a_row_without_the_key_is_told_by_the_keys_it_has(tmp_path, row, key, help):
    path = preparing.write_jsonl(tmp_path / "x.jsonl", [row])
    with pytest.raises(DataError) as error:
        preparing.prepare(tmp_path, f"jsonl:{path}", text_key=key)
    begin = f"{path}:1: {key} is missing or null (data.text_key='{key}' names nothing in the row, "
    assert str(error.value).startswith(begin) and help in str(error.value), str(error.value)
    with pytest.raises(DataError, match=r"1 of 1 rows are bad, .* names nothing in the row, which has"):
        preparing.prepare(tmp_path, f"jsonl:{path}", text_key=key, bad_rows="skip")
    with pytest.raises(DataError, match=rf"x.jsonl:1: {key} is missing or null \(--text-key='{key}' names nothing"):
        texts_lib.read(str(path), key)


@pytest.mark.parametrize("key", ["a.b.c", "a.b.c.d"])
def test_null_is_told_from_what_is_missing_however_deep_it_lies(key):
    row = Fields(key, "source", "default", 99).document({"a": {"b": {"c": None}}})
    assert str(row) == f"{key} is missing or null"
    assert bool(row.detail) == (key == "a.b.c.d")


def test_a_table_without_the_column_names_the_option_and_what_is_close(tmp_path):
    path = preparing.write_parquet(tmp_path / "x.parquet", [{"Text": "x", "id": 1}])
    message = rf"{path} has no column 'text', only Text, id; did you mean 'Text'\? \(data.text_key='text'\)"
    with pytest.raises(DataError, match=message):
        preparing.prepare(tmp_path, f"parquet:{path}")
