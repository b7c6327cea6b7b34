"""Weights of sources repeat documents or choose among them; a hash of its text holds a document out."""

import re

import pytest

from anchorjax.data.documents import Document
from anchorjax.data.store.index import Index
from anchorjax.errors import DataError
from tests.data import preparing


def test_weights_repeat_documents_or_choose_among_them(tmp_path):
    for name in "abc":
        preparing.write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name}{i}", "source": name} for i in range(400)])
    source = f"jsonl:{tmp_path}/a.jsonl,2; jsonl:{tmp_path}/b.jsonl,0.25;jsonl:{tmp_path}/[c].jsonl,1.5"
    train, validation = preparing.prepare(tmp_path, source)
    counts = {name: preparing.sources(train).count(name) for name in "abc"}
    held_out = {name: preparing.sources(validation).count(name) for name in "abc"}
    assert counts["a"] == 2 * (400 - held_out["a"])
    assert 0.18 < counts["b"] / 280 < 0.32 and 1.3 < counts["c"] / 280 < 1.7
    assert 90 < held_out["a"] < 150 and len(set(preparing.texts(validation))) == validation.num_documents
    assert not set(preparing.texts(train)) & set(preparing.texts(validation))
    index = Index.read(train.path)
    assert index.weighted_out == 400 - len(set(preparing.texts(train)) & {f"b{i}" for i in range(400)}) - held_out["b"]
    assert index.source_documents == [counts[name] for name in index.source_names]
    assert index.source_tokens == [
        sum(len(text) + 1 for text in preparing.texts(train) if text[0] == name) for name in index.source_names
    ]


def test_the_share_that_is_advised_holds_out_a_document_that_its_weight_keeps(tmp_path):
    texts = [Document(f"text {i}", "") for i in range(60)]
    texts.sort(key=lambda text: text.draw("held out"))
    while texts[0].draw("weight") < 0.3:  # the smallest draw must be of one that is left out
        texts.pop(0)
    path = preparing.write_jsonl(tmp_path / "x.jsonl", [{"text": text.content} for text in texts])
    with pytest.raises(DataError, match="held out none of") as error:
        preparing.prepare(tmp_path, f"jsonl:{path},0.3", held_out_share=0.001)
    share = float(re.search(r"held_out_share=([\d.]+) holds out at least one", str(error.value))[1])
    _, validation = preparing.prepare(tmp_path, f"jsonl:{path},0.3", held_out_share=share)
    assert validation.num_documents == 1


def test_copies_of_a_text_are_on_one_side(tmp_path):
    rows = [{"text": f"text {i % 50}"} for i in range(500)]
    train, validation = preparing.prepare(tmp_path, f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', rows)}")
    assert train.num_documents + validation.num_documents == 500
    assert not set(preparing.texts(train)) & set(preparing.texts(validation))
