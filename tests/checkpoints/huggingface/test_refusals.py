"""What is damaged, ambiguous or could be dangerous is refused at `open`, in one line with the file's name."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from anchorjax.checkpoints.huggingface.weights import INDEX, SINGLE, Weights
from tests.checkpoints.huggingface.making import SHARDS, refusal, save


def test_no_directory_and_no_weights(tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "none")
    (tmp_path / "file").touch()
    assert "cannot be read: Not a directory" in refusal(tmp_path / "file")
    assert f"neither {SINGLE} nor {INDEX}" in refusal(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    assert refusal(tmp_path).endswith("only adapter_model.safetensors")


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.pkl", "last.ckpt", SINGLE]
)
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_named_and_not_run(tmp_path, name, protocol):
    canary = tmp_path / "canary"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_bytes(pickle.dumps(Canary(canary), protocol))
    message = refusal(tmp_path / "model")
    assert name in message
    if name != SINGLE:
        assert "only safetensors are read" in message
    elif protocol >= 2:
        assert "it is a pickle" in message
    assert not canary.exists()
    pickle.loads((tmp_path / "model" / name).read_bytes()).close()
    assert canary.exists(), "the canary does not sing"


def test_a_shard_that_is_a_pickle_is_not_run(tmp_path, sharded):
    (sharded / SHARDS[1]).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    assert f"{SHARDS[1]} cannot be read as safetensors: it is a pickle" in refusal(sharded)
    assert not (tmp_path / "canary").exists()


def test_a_zip_and_a_git_lfs_pointer_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / SINGLE, "w") as file:
        file.writestr("archive/data.pkl", b"")
    assert "it is a zip archive" in refusal(tmp_path)
    (tmp_path / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "it is a Git LFS pointer" in refusal(tmp_path)


@pytest.mark.parametrize("length", [0x280, 0x480])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path, length):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    content = struct.pack("<Q", length) + header.ljust(length) + b"\0\0\x80?"
    (tmp_path / SINGLE).write_bytes(content)
    assert Weights.open(tmp_path).read("a").tolist() == [1.0]
    (tmp_path / SINGLE).write_bytes(content[:-1])
    assert "pickle" not in refusal(tmp_path)


def header(content) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = header({"a": entry()}) + bytes(8)
DAMAGED = {
    "empty": b"",
    "short": GOOD[:5],
    "cut header": GOOD[:20],
    "cut data": GOOD[:-1],
    "extra byte": GOOD + b"\0",
    "huge length": struct.pack("<Q", 2**40) + GOOD[8:],
    "largest length": struct.pack("<Q", 2**64 - 1) + GOOD[8:],
    "huge header": header(b" " * (10**8 + 1)),
    "no JSON": header(b"{"),
    "list": header([]),
    "deep": header(b"[" * 10**5),
    "overlap": header({"a": entry(), "b": entry()}) + bytes(8),
    "hole": header({"a": entry(offsets=(8, 16))}) + bytes(16),
    "backwards": header({"a": entry(offsets=(8, 0))}) + bytes(8),
    "shape": header({"a": entry(shape=(3,))}) + bytes(8),
    "overflow": header({"a": entry(shape=(2**40, 2**40))}) + bytes(8),
    "negative": header({"a": entry(shape=(-2,))}) + bytes(8),
    "dtype": header({"a": entry(dtype="F33")}) + bytes(8),
    "no tensors": header({}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / SINGLE).write_bytes(GOOD)
    assert list(Weights.open(tmp_path).tensors) == ["a"]
    (tmp_path / SINGLE).write_bytes(content)
    assert str(tmp_path / SINGLE) in refusal(tmp_path)


def test_a_damaged_shard_is_named(sharded):
    file = sharded / SHARDS[2]
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file} cannot be read as safetensors" in refusal(sharded)


@pytest.mark.parametrize("dtype", ["F64", "I64", "U8", "BOOL", "F8_E4M3"])
def test_a_tensor_of_another_type_is_named(tmp_path, dtype):
    size = 8 if dtype.endswith("64") else 1
    tensors = {"good": entry("F16", (4,), (0, 8)), "bad": entry(dtype, (8 // size,), (8, 16))}
    (tmp_path / SINGLE).write_bytes(header(tensors) + bytes(16))
    assert refusal(tmp_path).endswith(f"{SINGLE}: 'bad' is {dtype}; allowed: F32, BF16, F16")


@pytest.mark.parametrize(
    "content", ["[]", "5", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{", "[" * 10**5, "\0"]
)
def test_an_index_that_is_none(sharded, content):
    (sharded / INDEX).write_text(content)
    assert str(sharded / INDEX) in refusal(sharded)


def test_an_index_that_is_not_utf8(sharded):
    (sharded / INDEX).write_bytes(b'{"weight_map": {"\xff": "x"}}')
    assert f"{sharded / INDEX} cannot be read: 'utf-8' codec can't decode" in refusal(sharded)


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "", 3, None, ["x.safetensors"]])
def test_an_index_of_other_files(edit_index, shard):
    directory = edit_index(lambda weight_map: weight_map.update(b=shard))
    assert f"'b' is listed in {shard!r}" in refusal(directory)


@pytest.mark.parametrize("name", ["../{}", "{home}/{}", "sub/../../{}", "sub/{}", "..\\{}", "./{}", "\0{}"])
def test_a_name_that_leaves_the_directory(sharded, edit_index, name):
    """The file that is named exists and is good: nothing but the name is wrong."""
    home = sharded.parent
    (sharded / "sub").mkdir()
    for place in (home, sharded / "sub"):
        (place / SHARDS[1]).write_bytes((sharded / SHARDS[1]).read_bytes())
    name = name.format(SHARDS[1], home=home)
    edit_index(lambda weight_map: weight_map.update(b=name))
    assert f"{name!r} is not the name of a file in this directory" in refusal(sharded)


@pytest.mark.parametrize("file", [SHARDS[1], INDEX])
def test_a_link_that_leaves_the_directory(sharded, file):
    outside = (sharded / file).rename(sharded.parent / "outside")
    (sharded / file).symlink_to("../outside")
    assert f"{file} is a link that leaves its directory" in refusal(sharded)
    (sharded / file).unlink()
    outside.rename(sharded / "inside")
    (sharded / file).symlink_to("inside")
    assert Weights.open(sharded).read("b").tolist() == [98] * 4


def test_a_single_file_may_not_be_a_link_that_leaves_either(tmp_path):
    file = save(tmp_path / "model") / SINGLE
    file.rename(tmp_path / "outside")
    file.symlink_to(tmp_path / "outside")
    assert "leaves its directory" in refusal(tmp_path / "model")


def hub_cache(directory: Path, home: Path) -> Path:
    """Moves files to where the Hugging Face cache has them: a snapshot of links to blobs."""
    snapshot = home / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for number, file in enumerate(sorted(directory.iterdir())):
        file.rename(home / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


def test_the_hub_cache_is_read(sharded, tmp_path):
    snapshot = hub_cache(sharded, tmp_path / "hub" / "models--org--name")
    assert Weights.open(snapshot).read("b").tolist() == [98] * 4
    (tmp_path / "link").symlink_to(snapshot)
    assert Weights.open(tmp_path / "link").read("c").tolist() == [99] * 4
    here = os.getcwd()
    try:
        os.chdir(snapshot)
        assert Weights.open(".").read("a").tolist() == [97] * 4
    finally:
        os.chdir(here)


def test_links_within_a_folder_that_is_no_cache_are_refused(sharded, tmp_path):
    snapshot = hub_cache(sharded, tmp_path / "datasets--org--name")
    assert "leaves its directory" in refusal(snapshot)
    home = (tmp_path / "datasets--org--name").rename(tmp_path / "models--org--name")
    snapshot = home / snapshot.relative_to(tmp_path / "datasets--org--name")
    assert Weights.open(snapshot).tensors
    (home / "blobs").rename(home / "other")
    for link in snapshot.iterdir():
        target = os.readlink(link).replace("blobs", "other")
        link.unlink()
        link.symlink_to(target)
    assert "leaves its directory" in refusal(snapshot)


def test_links_to_another_model_of_the_cache_are_refused(sharded, tmp_path):
    snapshot = hub_cache(sharded, tmp_path / "models--org--name")
    (tmp_path / "models--org--other").mkdir()
    (snapshot / SHARDS[0]).resolve().rename(tmp_path / "models--org--other" / "blob")
    (snapshot / SHARDS[0]).unlink()
    (snapshot / SHARDS[0]).symlink_to("../../../models--org--other/blob")
    assert "leaves its directory" in refusal(snapshot)


def test_a_missing_shard(sharded):
    (sharded / SHARDS[1]).unlink()
    assert refusal(sharded) == f"{sharded / SHARDS[1]} is missing"
    (sharded / SHARDS[1]).symlink_to("nowhere")
    assert refusal(sharded) == f"{sharded / SHARDS[1]} is missing"
    (sharded / SHARDS[1]).unlink()
    (sharded / SHARDS[1]).mkdir()
    assert refusal(sharded) == f"{sharded / SHARDS[1]} is not a file"


def test_a_tensor_that_its_shard_lacks(edit_index):
    directory = edit_index(lambda weight_map: weight_map.update(d=SHARDS[0]))
    assert f"'d' is listed in {SHARDS[0]}, which lacks it" in refusal(directory)


def test_a_tensor_in_another_shard(edit_index):
    directory = edit_index(lambda weight_map: weight_map.update(a=SHARDS[1], b=SHARDS[0]))
    assert f"'a' is listed in {SHARDS[1]}, but is in {SHARDS[0]}" in refusal(directory)


def test_a_tensor_that_the_index_lacks(sharded):
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32), "x": np.zeros(1, np.float32)}, sharded / SHARDS[0])
    assert f"{SHARDS[0]}: 'x' is not in {INDEX}" in refusal(sharded)


def test_a_tensor_in_two_shards(sharded):
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)}, sharded / SHARDS[0])
    assert f"'b' is in both {SHARDS[0]} and {SHARDS[1]}" in refusal(sharded)


def test_a_single_file_beside_an_index_of_others(sharded):
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, sharded / SINGLE)
    assert f"both {SINGLE} and {INDEX}" in refusal(sharded)


def test_other_files_are_left_alone(sharded):
    for name in ("consolidated.safetensors", "pytorch_model.bin", "config.json"):
        (sharded / name).write_bytes(b"whatever")
    assert set(Weights.open(sharded).tensors) == {"a", "b", "c"}
