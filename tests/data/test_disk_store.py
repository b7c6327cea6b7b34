"""A store on disk is the one that was written, opens at once, and is refused by name when it is damaged."""

import dataclasses
import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from anchorjax import data
from anchorjax.data.rows.packing import RowPacker
from anchorjax.data.store import remarks
from anchorjax.data.store import tokens as store_lib
from anchorjax.data.store.index import Index
from anchorjax.data.store.tokens import TokenStore
from anchorjax.errors import ConfigError, DataError
from tests.data import preparing
from tests.data.preparing import BYTES, data_config

ROOT = pathlib.Path(__file__).parents[2]
ROWS = [{"text": f"document {i} " * (i % 7 + 1), "source": f"s{i % 3}"} for i in range(60)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    preparing.prepare(folder, f"jsonl:{preparing.write_jsonl(folder / 'x.jsonl', ROWS)}")
    return folder / "store"


@pytest.fixture
def store(prepared, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(prepared, tmp_path / "store") / "train"


def in_memory(texts_of: TokenStore, tokenizer=BYTES) -> TokenStore:
    kept = dict(zip(preparing.texts(texts_of), preparing.sources(texts_of), strict=True))
    return store_lib.build([{"text": text, "source": source} for text, source in kept.items()], tokenizer)


def test_a_store_on_disk_is_the_one_in_memory(prepared):
    opened = TokenStore.open(prepared / "train")
    built = in_memory(opened)
    assert opened.num_documents > 30
    assert opened.fingerprint == built.fingerprint
    assert opened.tokens.dtype == built.tokens.dtype == np.uint16
    for name in ("tokens", "offsets", "sources"):
        np.testing.assert_array_equal(getattr(opened, name), getattr(built, name))
        assert type(getattr(opened, name)) is np.ndarray
    assert opened.source_names == built.source_names
    both = set(preparing.texts(opened)) | set(preparing.texts(TokenStore.open(prepared / "validation")))
    assert both == {row["text"] for row in ROWS}


def test_a_large_vocabulary_takes_four_bytes_and_has_the_same_fingerprint(tmp_path, monkeypatch):
    large = dataclasses.replace(BYTES, vocab_size=2**16 + 1)
    monkeypatch.setattr("anchorjax.data.store.preparing.tokenizer_lib.load", lambda name: large)
    monkeypatch.setattr("anchorjax.data.store.pieces._tokenizer", lambda directory, name: large)
    train, _ = preparing.prepare(tmp_path, f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', ROWS)}")
    built = in_memory(train, large)
    assert (train.tokens.dtype, built.tokens.dtype) == (np.int32, np.int32)
    assert Index.read(train.path).dtype == "uint32"
    assert train.fingerprint == built.fingerprint == store_lib.verify(train.path).fingerprint


def test_load_store_opens_what_was_prepared(prepared):
    config = data_config(store=str(prepared), source="never read")
    for split in ("train", "validation"):
        assert data.load_store(config, split, BYTES).path == prepared / split


def test_a_store_of_another_tokenizer_is_refused(store):
    edit(store, tokenizer="hf:0123456789abcdef")
    with pytest.raises(ConfigError, match=r"data.store=.* its tokens are of the tokenizer hf:0123456789abcdef, and"):
        data.load_store(data_config(store=str(store.parent)), "train", BYTES)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}/train is not a token store: .*index.json does not exist"):
        data.load_store(data_config(store=str(tmp_path)), "train", BYTES)


def edit(store, **changes):
    file = store / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut(name):
    def damage(store):
        content = (store / name).read_bytes()
        (store / name).write_bytes(content[: len(content) // 2])

    return damage


def flip(name, at=-5):
    def damage(store):
        content = bytearray((store / name).read_bytes())
        content[at] ^= 1
        (store / name).write_bytes(content)

    return damage


def longer(store):
    file = store / "tokens.bin"
    file.write_bytes(file.read_bytes() + b"xx")


def swap_sources(store):
    edit(store, source_names=[], source_documents=[], source_tokens=[])


def shuffled_offsets(store):
    offsets = np.load(store / "offsets.npy")
    offsets[[3, 4]] = offsets[[4, 3]]
    np.save(store / "offsets.npy", offsets)


AT_OPENING = {
    "tokens cut": (cut("tokens.bin"), "tokens.bin is damaged: it has"),
    "tokens missing": (lambda store: (store / "tokens.bin").unlink(), "tokens.bin cannot be read: No such file"),
    "tokens empty": (lambda store: (store / "tokens.bin").write_bytes(b""), "tokens.bin is damaged: it has 0 bytes"),
    "tokens longer": (longer, "tokens.bin is damaged: it has"),
    "offsets cut": (cut("offsets.npy"), "offsets.npy is damaged"),
    "offsets empty": (lambda store: (store / "offsets.npy").write_bytes(b""), "offsets.npy is damaged"),
    "offsets missing": (lambda store: (store / "offsets.npy").unlink(), "offsets.npy cannot be read"),
    "offsets pickled": (
        lambda store: np.save(store / "offsets.npy", np.array([{}], object), allow_pickle=True),
        "offsets.npy is damaged",
    ),
    "offsets of another type": (
        lambda store: np.save(store / "offsets.npy", np.load(store / "offsets.npy").astype(np.int32)),
        "offsets.npy is damaged: it holds int32",
    ),
    "offsets out of order": (shuffled_offsets, "offsets.npy is damaged: it does not ascend"),
    "last offset": (flip("offsets.npy", -8), "offsets.npy is damaged: it does not ascend"),
    "sources cut": (cut("sources.npy"), "sources.npy is damaged"),
    "sources unknown": (swap_sources, "sources.npy is damaged: there are 0 sources"),
    "index cut": (cut("index.json"), "index.json cannot be read"),
    "index no object": (lambda store: (store / "index.json").write_text("[]"), "it holds no JSON object"),
    "index missing": (lambda store: (store / "index.json").unlink(), "is not a token store"),
    "index of the future": (lambda store: edit(store, format=5), "has format 5; this version reads formats 2 to 4"),
    "index with more": (lambda store: edit(store, more=1), "index.json is damaged: its keys differ in more"),
    "index of another count": (lambda store: edit(store, num_documents=5), "offsets.npy is damaged"),
    "index with text": (lambda store: edit(store, num_tokens="7"), "num_tokens is '7', not a int"),
    "index with dtype": (lambda store: edit(store, dtype="float64"), "dtype is 'float64'; allowed: uint16, uint32"),
    "index of other names": (lambda store: edit(store, source_names=["a"]), "source_documents has 3 values"),
    "index without sums": (lambda store: edit(store, sha256={}), "sha256 names"),
}
AT_VERIFYING = {
    "token flipped": (flip("tokens.bin"), "tokens.bin is damaged: its sha256"),
    "source flipped": (flip("sources.npy", -2), "sources.npy is damaged"),
    "fingerprint": (lambda store: edit(store, fingerprint="0" * 64), "index.json is damaged: its fingerprint"),
    "vocabulary": (lambda store: edit(store, vocab_size=50), "tokens outside the vocabulary, 0 to 49"),
}


@pytest.mark.parametrize("name", AT_OPENING)
def test_damage_is_found_at_opening(store, name):
    damage, message = AT_OPENING[name]
    damage(store)
    with pytest.raises(DataError) as error:
        TokenStore.open(store)
    assert message in str(error.value) and str(store) in str(error.value) and "\n" not in str(error.value)


def test_a_store_of_the_format_before_opens_and_says_what_it_did_not_count(store):
    tokens = np.array(TokenStore.open(store).tokens)
    content = json.loads((store / "index.json").read_text())
    older = {name: value for name, value in content.items() if name not in ("marks", "lost", "lacking")}
    (store / "index.json").write_text(json.dumps(older | {"format": 2}))
    opened = store_lib.verify(store)
    np.testing.assert_array_equal(opened.tokens, tokens)
    assert dict(remarks.of(Index.read(store)))["lost"] == "not counted by the version that prepared this store"


@pytest.mark.parametrize("name", AT_VERIFYING)
def test_damage_inside_is_found_by_verify(store, name):
    assert store_lib.verify(store).num_documents
    damage, message = AT_VERIFYING[name]
    damage(store)
    with pytest.raises(DataError) as error:
        store_lib.verify(store)
    assert message in str(error.value)


def test_another_process_gets_the_path_and_not_the_tokens(store):
    opened = TokenStore.open(store)
    parcel = pickle.dumps(opened)
    assert len(parcel) < 500
    again = pickle.loads(parcel)
    assert (again.path, again.fingerprint) == (opened.path, opened.fingerprint)
    np.testing.assert_array_equal(again.tokens, opened.tokens)
    edit(store, fingerprint="0" * 64)
    with pytest.raises(DataError, match="was replaced while a run was reading it"):
        pickle.loads(parcel)
    built = in_memory(opened)
    assert pickle.loads(pickle.dumps(built)).tokens.tolist() == built.tokens.tolist()


def test_batches_are_those_of_the_store_in_memory(prepared):
    opened = TokenStore.open(prepared / "train")
    config = data_config(store=str(prepared), workers=1)
    batches = [data.train_batches(s, BYTES, config, seed=1, start_step=0) for s in (opened, in_memory(opened))]
    for _ in range(5):
        one, other = (next(b) for b in batches)
        np.testing.assert_array_equal(one.tokens_BT, other.tokens_BT)
    for b in batches:
        b.close()


BILLION = """
import sys, time
started = time.perf_counter()
from anchorjax.data.store.tokens import TokenStore
imported = time.perf_counter()
store = TokenStore.open(sys.argv[1])
print(time.perf_counter() - imported, store.num_tokens)
kb = {line.split()[0]: int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")}
print(kb["RssAnon:"])
"""


def test_a_billion_tokens_open_in_under_a_second(store):
    """The tokens are a hole in a file: 2 GB that take no space, of a million documents."""
    tokens, documents = 10**9, 10**6
    with open(store / "tokens.bin", "wb") as file:
        file.truncate(2 * tokens)
    np.save(store / "offsets.npy", np.linspace(0, tokens, documents + 1).astype(np.int64))
    np.save(store / "sources.npy", np.zeros(documents, np.int16))
    edit(store, num_tokens=tokens, num_documents=documents)
    command = [sys.executable, "-c", BILLION, str(store)]
    out = subprocess.check_output(command, cwd=ROOT, text=True).split()
    assert float(out[0]) < 1 and int(out[1]) == tokens
    assert int(out[2]) < 300_000, "kilobytes: the tokens were read into memory"
    packer = RowPacker(TokenStore.open(store), 4096, 0, "anchor", "continue", False, BYTES.bos_id, BYTES.pad_id)
    assert packer.row(200_000).tokens_T.shape == (4096,)
