import dataclasses

import numpy as np
import pytest

from anchorjax import data
from anchorjax.data.store import tokens as store_lib
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.data.text.round_trip import TokenizerFault
from anchorjax.errors import ConfigError

BYTES = tokenizer_lib.load("bytes")


def documents(*texts):
    return [{"text": text} for text in texts]


class FixedTokenizer:
    """Encodes every text as the same ids."""

    eos_id = 0

    def __init__(self, ids, vocab_size, name="fixed"):
        self.ids, self.vocab_size, self.name = ids, vocab_size, name

    def encode_batch(self, texts):
        return [np.asarray(self.ids) for _ in texts]

    def lost(self, text):
        return {}


def test_documents_end_with_the_end_of_sequence():
    store = store_lib.build(documents("ab", "c"), BYTES)
    assert store.tokens.tolist() == [97, 98, 257, 99, 257]
    assert store.offsets.tolist() == [0, 3, 5]
    assert (store.num_documents, store.num_tokens) == (2, 5)
    assert store.document(0).tolist() == [97, 98, 257]
    assert store.document(1).tolist() == [99, 257]


def test_documents_stay_in_order_however_many_are_encoded_at_once():
    texts = ["x" * (length % 7) + str(length) for length in range(50)]
    store = store_lib.build(documents(*texts), BYTES)
    assert [BYTES.decode(store.document(i)) for i in range(store.num_documents)] == texts


class PickyTokenizer(FixedTokenizer):
    """Ids as given for the text "bad", none for others."""

    def encode_batch(self, texts):
        return [np.asarray(self.ids if text == "bad" else [], np.int32) for text in texts]


def test_a_bad_document_is_counted_from_the_first():
    with pytest.raises(ValueError, match="document 33: token id 10"):
        store_lib.build(documents(*["good"] * 33, "bad"), PickyTokenizer([10], 10))


@pytest.mark.parametrize("index", [-1, 2])
def test_a_document_outside_the_store_is_refused(index):
    with pytest.raises(IndexError, match=f"document {index} of a store of 2"):
        store_lib.build(documents("ab", "c"), BYTES).document(index)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_tokens_have_the_smallest_type_that_holds_the_vocabulary(vocab_size, dtype):
    store = store_lib.build(documents("x"), FixedTokenizer([vocab_size - 1], vocab_size))
    assert store.tokens.dtype == dtype
    assert store.document(0).tolist() == [vocab_size - 1, 0]


def test_an_empty_corpus_is_refused():
    for empty in (documents(), documents("", "")):
        with pytest.raises(ValueError, match=f"no text in its {len(empty)} documents"):
            store_lib.build(empty, BYTES)


def test_empty_documents_are_left_out_and_counted(caplog):
    store = store_lib.build(documents("a", "", "b"), BYTES)
    assert "1 of 3 documents" in caplog.text
    assert store.fingerprint == store_lib.build(documents("a", "b"), BYTES).fingerprint


@pytest.mark.parametrize("bad", [-1, 10])
def test_an_id_outside_the_vocabulary_is_refused_with_its_document(bad):
    with pytest.raises(ValueError, match=rf"document 0: token id {bad} .* 0 to 9"):
        store_lib.build(documents("a"), FixedTokenizer([3, bad], 10))


def test_a_character_that_the_tokenizer_loses_is_refused_with_its_document(monkeypatch):
    def lost(tokenizer, text):
        if "\u00e9" in text:
            raise TokenizerFault("the tokenizer loses U+00E9")
        return {}

    monkeypatch.setattr(tokenizer_lib.ByteTokenizer, "lost", lost)
    with pytest.raises(TokenizerFault, match=r"^document 17: the tokenizer loses U\+00E9$"):
        store_lib.build(documents(*["plain"] * 17, "caf\u00e9"), BYTES)


@pytest.mark.parametrize(
    ("texts", "tokenizer", "words"),
    [
        (["a"], FixedTokenizer([3, 10], 10), r"data.tokenizer='NAME' is not allowed: document 0: token id 10 is out"),
        (["a", ""], FixedTokenizer([], 10), r"data.source='public_domain' is not allowed: the corpus has no text"),
    ],
)
def test_the_key_at_fault_is_named(tiny_config, monkeypatch, texts, tokenizer, words):
    monkeypatch.setattr(data.sources, "load", lambda *_: documents(*texts))
    config = tiny_config(data__tokenizer="NAME").data
    with pytest.raises(ConfigError, match=words):
        data.load_store(config, "train", tokenizer)


def named(names):
    return [{"text": text, "source": name} for text, name in zip(("ab", "c"), names, strict=True)]


def test_the_fingerprint_knows_tokens_offsets_sources_and_tokenizer():
    stores = [
        store_lib.build(documents("ab", "c"), FixedTokenizer([1, 2], 10)),
        store_lib.build(documents("ab", "c"), FixedTokenizer([1, 3], 10)),
        store_lib.build(documents("ab", "c"), FixedTokenizer([1, 2], 10, name="other")),
        store_lib.build(documents("abc"), FixedTokenizer([1, 2, 0, 1, 2], 10)),  # same tokens, one document
        *(store_lib.build(named(names), FixedTokenizer([1, 2], 10)) for names in ("xx", "yy", "xy", "yx")),
    ]
    assert np.array_equal(stores[0].tokens, stores[3].tokens)
    assert len({store.fingerprint for store in stores}) == 8
    again = store_lib.build(documents("ab", "c"), FixedTokenizer([1, 2], 10))
    assert again.fingerprint == stores[0].fingerprint
    assert len(again.fingerprint) == 64


def test_a_store_is_frozen():
    store = store_lib.build(documents("a"), BYTES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        store.tokens = None
