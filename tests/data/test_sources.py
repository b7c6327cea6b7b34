import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from anchorjax.data import sources
from tests.data.preparing import data_config

ROOT = pathlib.Path(__file__).parents[2]
CORPUS = ROOT / "anchorjax" / "data" / "corpora" / "public_domain.jsonl.gz"
CORPUS_SHA256 = "20c9e2c4359906a02adc1180d871de71fd1bdd328cdde9de6ee03cb216c6c495"

LOAD = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the network was used")

socket.socket.connect = socket.getaddrinfo = refuse
from anchorjax.data import sources
from tests.data.preparing import data_config

for split in ("train", "validation"):
    print(len(sources.load("public_domain", split, sys.argv[1])))
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def splits(data_dir):
    return {split: sources.load("public_domain", split, data_dir) for split in ("train", "validation")}


def start_load(data_dir):
    """Loads the corpus in a process of its own, with sockets blocked."""
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, data_dir],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_shipped_corpus_is_the_one_described():
    """If this fails on purpose: change corpora/README.md and the builder's version as well."""
    assert hashlib.sha256(CORPUS.read_bytes()).hexdigest() == CORPUS_SHA256
    assert CORPUS_SHA256 in (CORPUS.parent / "README.md").read_text()


def test_the_splits_share_the_corpus(splits):
    train, validation = ({d["title"] + d["source"]: d for d in documents} for documents in splits.values())
    assert (len(splits["train"]), len(splits["validation"])) == (len(train), len(validation)) == (1400, 58)
    assert not train.keys() & validation.keys()
    everything = [*train.values(), *validation.values()]
    assert sum(len(d["text"].encode()) for d in everything) == 8_325_884
    assert [sum(d["source"] == s for d in everything) for s in ("austen", "kjv")] == [270, 1188]
    assert {d["source"] for d in validation.values()} == {"austen", "kjv"}


def test_documents_keep_the_order_of_the_books(splits):
    assert [d["title"] for d in splits["train"]][:25] == [f"emma {i}" for i in [*range(1, 25), 26]]
    assert splits["validation"][0]["title"] == "emma 25"
    assert splits["train"][0]["text"].startswith("CHAPTER I\n\n\nEmma Woodhouse, handsome, clever, and rich")


def test_a_prepared_data_set_is_found_by_its_tfds_name(splits, data_dir):
    documents = sources.load("tfds:public_domain", "validation", data_dir)
    assert [d["text"] for d in documents] == [d["text"] for d in splits["validation"]]


def test_processes_that_prepare_at_once_all_succeed_without_network_or_noise(tmp_path):
    for process in [start_load(str(tmp_path)) for _ in range(2)]:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.split(), err) == (0, ["1400", "58"], "")
    assert [path.name for path in (tmp_path / "public_domain").iterdir()] == ["1.0.0"]


def test_a_killed_preparation_is_done_again(tmp_path):
    process = start_load(str(tmp_path))
    while process.poll() is None and not list(tmp_path.glob("public_domain/incomplete.*")):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert [path.name for path in (tmp_path / "public_domain").iterdir()] != ["1.0.0"], "killed too late"
    assert len(sources.load("public_domain", "train", str(tmp_path))) == 1400


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("nothing", "train", "'nothing'; allowed: .*public_domain, .*tfds:NAME"),
        ("tfds", "train", "'tfds'; allowed: .*public_domain, .*tfds:NAME"),
        ("public_domain", "test", "'test' of public_domain; allowed: train, validation"),
        (
            "jsonl:x.jsonl",
            "train",
            "files become a token store first: anchorjax prepare",
        ),
        ("public_domain;tfds:x", "train", "files become a token store first"),
        ("tfds:nothing", "train", "no prepared TFDS data set 'nothing' in "),
    ],
)
def test_names_that_do_not_exist_are_refused_with_those_that_do(splits, data_dir, name, split, message):
    with pytest.raises(ValueError, match=message):
        sources.load(name, split, data_dir)


def test_importing_the_package_loads_no_heavy_library():
    code = "import sys, anchorjax.data; print(sorted({'grain', 'tensorflow_datasets'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


def test_files_have_whole_paths(tmp_path, monkeypatch):
    """Workers elsewhere have other working directories."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    (shard,) = sources.shards(data_config(source="jsonl:*.jsonl"))
    assert shard.shard.files == (tmp_path / "a.jsonl",)


@pytest.mark.parametrize(
    ("specified", "names"),
    [
        (["jsonl:/data/books/*.jsonl"], ["books"]),
        (["jsonl:/data/books/"], ["books"]),
        (["jsonl:~/books.jsonl.gz"], ["books"]),
        (["text_folder:**/*.txt"], ["documents"]),
        (["jsonl:../*"], ["documents"]),
        (["jsonl:/data/[ab]/x.jsonl"], ["data"]),
        (["jsonl:c4.en.jsonl", "jsonl:c4.de.jsonl"], ["c4.en", "c4.de"]),
        (["jsonl:/data/v1.5/*"], ["v1.5"]),
        (["tfds:wikipedia/20230601.en:1.0.0", "tfds:c4"], ["wikipedia/20230601.en", "c4"]),
        (["jsonl:web/train.jsonl", "parquet:books/train.parquet"], ["web/train", "books/train"]),
        (["jsonl:/a/b/c.jsonl", "jsonl:/x/b/c.jsonl", "jsonl:/d.jsonl"], ["a/b/c", "x/b/c", "d"]),
        (["jsonl:b/x*", "jsonl:b/y*"], ["b", "b"]),
    ],
)
def test_documents_without_a_source_are_named_after_the_place_and_not_its_path(specified, names):
    assert sources._default_sources(specified) == names
