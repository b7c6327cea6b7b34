"""Packed rows of AnchorContext are taken apart into the documents that were packed."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.data import sources as sources_lib
from anchorjax.data.documents import BadRow
from anchorjax.data.store.index import Index
from anchorjax.errors import DataError
from tests.data import preparing
from tests.data.preparing import BYTES, data_config

DOCUMENTS = st.lists(
    st.tuples(st.sampled_from(["Books", "C4", "Wikipedia"]), st.lists(st.integers(0, 255), min_size=1, max_size=8)),
    min_size=1,
    max_size=6,
)


def pack(documents, *, as_lists=False, specials=True):
    """One row; with `specials`, each document begins with the bos and every other one ends with the eos."""
    ids, spans = [], []
    for index, (source, inner) in enumerate(documents):
        whole = [BYTES.bos_id, *inner, *[BYTES.eos_id] * (index % 2)] if specials else list(inner)
        spans.append({"source": source, "start": len(ids), "end": len(ids) + len(whole)})
        ids += whole
    if as_lists:
        spans = {key: [span[key] for span in spans] for key in ("source", "start", "end")}
    return {"input_ids": ids, "source": spans, "labels": [0]}


def write(folder, kind, rows):
    path = folder / f"x.{kind}"
    if kind == "parquet":
        return preparing.write_parquet(path, rows, group=2)
    return preparing.write_arrow(path, rows) if kind == "arrow" else preparing.write_jsonl(path, rows)


def read(path):
    (*weighted,) = sources_lib.shards(data_config(source=f"anchor_context:{path}"))
    return [(w.shard.place(number), row) for w in weighted for number, row in w.shard.rows()]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(DOCUMENTS, min_size=1, max_size=5),
    st.sampled_from(["jsonl", "jsonl.gz", "parquet", "arrow"]),
    *[st.booleans()] * 2,
)
def test_round_trip(tmp_path_factory, packed, kind, as_lists, specials):
    folder = tmp_path_factory.mktemp("packed")
    path = write(folder, kind, [pack(row, as_lists=as_lists, specials=specials) for row in packed])
    train, _ = preparing.prepare(folder, f"anchor_context:{path};jsonl:{held_out(folder)}", held_out_share=0.0)
    documents = [document for row in packed for document in row]
    found = [train.document(i).tolist() for i in range(train.num_documents)]
    assert found == [[*inner, BYTES.eos_id] for _, inner in documents]
    assert preparing.sources(train) == [source for source, _ in documents]


def held_out(folder):
    """So that there is a document to hold out, whatever else is in the store: see `no_validation`."""
    return preparing.write_jsonl(folder / "held_out.jsonl", [{"text": "x"}])


@pytest.fixture(autouse=True)
def no_validation(monkeypatch):
    """The text "x" is held out, and nothing else."""
    from anchorjax.data.documents import Document

    monkeypatch.setattr(Document, "draw", lambda self, purpose: -1.0 if isinstance(self.content, str) else 1.0)


GOOD = pack([("a", [1, 2]), ("b", [3])], specials=False)
SPANS = GOOD["source"]
BAD = {
    "no ids": ({"source": SPANS}, "input_ids is missing or empty"),
    "empty": ({"input_ids": [], "source": []}, "input_ids is missing or empty"),
    "floats": (GOOD | {"input_ids": [1.0, 2.0, 3.0]}, "input_ids is not a list of ids"),
    "texts": (GOOD | {"input_ids": ["a", "b", "c"]}, "input_ids is not a list of ids"),
    "nested": (GOOD | {"input_ids": [[1], [2], [3]]}, "input_ids is not a list of ids"),
    "ragged": (GOOD | {"input_ids": [[1], [2, 3], 4]}, "input_ids is not a list of integers"),
    "negative": (GOOD | {"input_ids": [1, -1, 3]}, "input_ids is not a list of ids"),
    "huge": (GOOD | {"input_ids": [1, 2**70, 3]}, "input_ids is not a list of ids"),
    "no spans": ({"input_ids": [1]}, "source is not a list of spans"),
    "text spans": (GOOD | {"source": "Books"}, "source is not a list of spans"),
    "short list": (GOOD | {"source": {"source": ["a"], "start": [0, 1], "end": [3]}}, "source is not a list of spans"),
    "null source": (GOOD | {"source": [{"source": None, "start": 0, "end": 3}]}, "a span in source has no source"),
    "surrogate": (
        GOOD | {"source": [SPANS[0], SPANS[1] | {"source": "\ud800"}]},
        "the name of the source holds a lone surrogate",
    ),
    "gap": (GOOD | {"source": [SPANS[0], SPANS[1] | {"start": 3}]}, "the spans in source do not lie end to end"),
    "overlap": (GOOD | {"source": [SPANS[0], SPANS[1] | {"start": 1}]}, "the spans in source do not lie end to end"),
    "empty span": (
        GOOD | {"source": [{"source": "a", "start": 0, "end": 0}, *SPANS]},
        "the spans in source do not lie end to end",
    ),
    "rest": (GOOD | {"source": SPANS[:1]}, "the spans in source do not cover input_ids"),
    "beyond": (GOOD | {"source": [SPANS[0], SPANS[1] | {"end": 9}]}, "the spans in source do not cover input_ids"),
    "list": ([1, 2], "not an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_row(tmp_path, name):
    row, reason = BAD[name]
    path = tmp_path / "x.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(row)}\n{json.dumps(GOOD)}\n")
    rows = read(path)
    assert [str(row) for _, row in rows if isinstance(row, BadRow)] == [reason]
    assert [place for place, row in rows if isinstance(row, BadRow)] == [f"{path}:2"]
    assert [row.content.tolist() for _, row in rows if not isinstance(row, BadRow)] == [[1, 2], [3], [1, 2], [3]]


def test_ids_of_another_tokenizer_are_refused(tmp_path):
    path = write(tmp_path, "parquet", [pack([("a", [1, 2]), ("b", [259])])])
    with pytest.raises(DataError, match=rf"{path}:0: .*token id 259 is outside the vocabulary of 'bytes', 0 to 258"):
        preparing.prepare(tmp_path, f"anchor_context:{path}")


def test_a_document_of_nothing_but_specials_is_a_bad_row(tmp_path):
    path = write(tmp_path, "arrow", [pack([("a", [1]), ("b", []), ("c", [])])])
    source = f"anchor_context:{path};jsonl:{held_out(tmp_path)}"
    with pytest.raises(DataError, match=f"{path}:0: no token in the text"):
        preparing.prepare(tmp_path, source)
    train, _ = preparing.prepare(tmp_path, source, bad_rows="skip", max_bad_share=0.5)
    assert train.num_documents == 1
    index = Index.read(train.path)
    assert (index.rows, index.bad_rows) == (4, {"no token in the text": 2})


def test_table_without_spans_is_refused(tmp_path):
    path = write(tmp_path, "parquet", [{"input_ids": [1, 2]}])
    with pytest.raises(DataError, match=f"{path} has no column 'source', only input_ids"):
        read(path)


def span_array(sources, **more):
    """One row's spans as an Arrow struct of three lists."""
    lists = {"start": [[0]], "end": [[2]]} | more
    arrays = [pyarrow.ListArray.from_arrays([0, 1], sources), *map(pyarrow.array, lists.values())]
    return pyarrow.StructArray.from_arrays(arrays, names=["source", *lists])


BROKEN = pyarrow.array([b"\xff"], pyarrow.binary())
ODD = {
    "a string": (["ab"], span_array(["a"]), "input_ids is missing or empty"),
    "an int": ([3], span_array(["a"]), "input_ids is missing or empty"),
    "an object": ([{"a": 1}], span_array(["a"]), "input_ids is missing or empty"),
    "a list of strings": ([["a", "b"]], span_array(["a"]), "input_ids is not a list of ids"),
    "a list with a null": ([[1, None]], span_array(["a"]), "input_ids is not a list of ids"),
    "a string that is not UTF-8": ([[1, 2]], span_array(BROKEN.view(pyarrow.string())), "not UTF-8"),
    "bytes that are not UTF-8": ([[1, 2]], span_array(BROKEN), "not UTF-8"),
    "two fields of a name": (
        [[1, 2]],
        pyarrow.StructArray.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["a", "a"]),
        "an object that cannot be read",
    ),
    "bytes": ([[1, 2]], span_array([b"caf\xc3\xa9"]), None),
}


@pytest.mark.parametrize("name", ODD)
def test_a_table_of_other_types_is_a_bad_row_unless_it_is_text(tmp_path, name):
    ids, spans, reason = ODD[name]
    pyarrow.parquet.write_table(pyarrow.table({"input_ids": ids, "source": spans}), tmp_path / "x.parquet")
    ((_, row),) = read(tmp_path / "x.parquet")
    if reason:
        assert isinstance(row, BadRow) and str(row).startswith(reason)
    else:
        assert (row.source, row.content.tolist()) == ("caf\u00e9", [1, 2])


def test_null_in_a_table_is_a_bad_row(tmp_path):
    path = write(tmp_path, "parquet", [GOOD, {"input_ids": None, "source": None}])
    assert str(read(path)[-1][1]) == "input_ids is missing or empty"
    assert np.array_equal(read(path)[0][1].content, [1, 2])
