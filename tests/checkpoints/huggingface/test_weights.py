"""What is written is read back bit for bit, and by others; nothing is read early, and nothing left half written."""

import gc
import json
import resource
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from anchorjax.checkpoints.huggingface.directory import new_directory
from anchorjax.checkpoints.huggingface.weights import DTYPES, INDEX, SINGLE, TensorInfo, Weights, write_files
from anchorjax.errors import WeightsError
from tests.checkpoints.huggingface.making import SHARDS, arrays, bits, save, write

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 2**17, 1])
def test_round_trip_is_exact_to_the_bit(tmp_path, shard_bytes):
    weights = Weights.open(save(tmp_path / "model", shard_bytes=shard_bytes))
    assert set(weights.tensors) == set(arrays())
    for name, array in arrays().items():
        info = weights.tensors[name]
        assert (info.shape, info.dtype) == (array.shape, array.dtype)
        assert bits(weights.read(name)) == bits(array), name
    files = {info.file for info in weights.tensors.values()}
    assert len(files) == {5 * 10**9: 1, 2**17: 4, 1: 6}[shard_bytes]
    assert (weights.directory / INDEX).exists() == (len(files) > 1)


def test_weights_can_be_written_as_they_were_opened(tmp_path):
    one = Weights.open(save(tmp_path / "one"))
    write(tmp_path / "two", one.tensors, one.read)
    two = Weights.open(tmp_path / "two")
    assert {name: bits(two.read(name)) for name in two.tensors} == {n: bits(a) for n, a in arrays().items()}


def test_values_that_are_not_contiguous_are_written_in_order(tmp_path):
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    weights = Weights.open(save(tmp_path / "model", {"t": table.T, "s": table[:, ::2]}))
    assert weights.read("t").tolist() == table.T.tolist()
    assert weights.read("s").tolist() == table[:, ::2].tolist()


def test_the_librarys_own_reader_and_writer_agree(tmp_path):
    loaded = safetensors.numpy.load_file(save(tmp_path / "ours") / SINGLE)
    assert {name: bits(array) for name, array in loaded.items()} == {n: bits(a) for n, a in arrays().items()}
    (tmp_path / "theirs").mkdir()
    safetensors.numpy.save_file(arrays(), tmp_path / "theirs" / SINGLE)
    theirs = Weights.open(tmp_path / "theirs")
    assert {name: bits(theirs.read(name)) for name in theirs.tensors} == {n: bits(a) for n, a in arrays().items()}


def test_tensors_are_aligned_to_their_size(tmp_path):
    raw = (save(tmp_path / "model") / SINGLE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    for name, entry in header.items():
        assert entry["data_offsets"][0] % arrays()[name].dtype.itemsize == 0, name


def test_transformers_loads_the_shards(tmp_path):
    import torch  # slow to import
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=False, **sizes))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with new_directory(tmp_path / "model") as part:
        write_files(part, state, state.__getitem__, shard_bytes=4000)
        model.config.save_pretrained(part)
    loaded, report = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    index = json.loads((tmp_path / "model" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in state.values())
    assert len(set(index["weight_map"].values())) > 3


def test_nothing_is_read_before_it_is_asked_for(sharded):
    weights = Weights.open(sharded)
    file = weights.tensors["b"].file
    file.write_bytes(file.read_bytes()[:-4])  # what `open` kept would not notice
    assert weights.read("a").tolist() == [97] * 4
    with pytest.raises(WeightsError, match=SHARDS[1]):
        weights.read("b")


def test_a_tensor_is_in_memory_once(tmp_path):
    """A process that may use 1.5 times the tensor beyond what it starts with still reads it."""
    size = 2**28
    save(tmp_path / "model", {"big": np.zeros(size // 4, np.float32), "same": np.zeros(size // 4, np.float32)})
    code = f"""
import resource, sys
from anchorjax.checkpoints.huggingface.weights import Weights
weights = Weights.open(sys.argv[1])
used = int(open("/proc/self/statm").read().split()[5]) * {resource.getpagesize()}
resource.setrlimit(resource.RLIMIT_DATA, (used + {size * 3 // 2},) * 2)
for name in weights.tensors:
    assert weights.read(name).nbytes == {size}
"""
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_unknown_tensor_is_named(sharded):
    with pytest.raises(WeightsError, match="has no tensor 'd'"):
        Weights.open(sharded).read("d")


def test_a_tensor_that_became_another_is_not_returned(sharded):
    weights = Weights.open(sharded)
    safetensors.numpy.save_file({"a": np.zeros(5, np.float32)}, sharded / SHARDS[0])
    with pytest.raises(WeightsError, match="changed"):
        weights.read("a")


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), RuntimeError("x"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(tmp_path, fault):
    def read(name):
        if name == "scalar":
            assert [path.name for path in tmp_path.iterdir()] != [], "nothing has been written before the fault"
            raise fault
        return arrays()[name]

    expected = WeightsError if isinstance(fault, OSError) else type(fault)
    with pytest.raises(expected, match="cannot be written.*No space left" if expected is WeightsError else None):
        write(tmp_path / "model", arrays(), read, shard_bytes=1)
    assert list(tmp_path.iterdir()) == []


def test_a_new_directory_appears_at_the_end(tmp_path):
    with new_directory(tmp_path / "deep" / "model") as part:
        write_files(part, arrays(), arrays().__getitem__)
        (part / "config.json").write_text("{}")
        assert not (tmp_path / "deep" / "model").exists()
        assert part.parent == tmp_path / "deep", "a renaming works within one file system"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]
    assert {path.name for path in (tmp_path / "deep" / "model").iterdir()} == {SINGLE, "config.json"}


def test_others_may_read_what_is_written(tmp_path):
    (tmp_path / "like").mkdir()
    (tmp_path / "like" / "file").touch()
    save(tmp_path / "model")
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "like").stat().st_mode
    assert (tmp_path / "model" / SINGLE).stat().st_mode == (tmp_path / "like" / "file").stat().st_mode


def test_a_directory_that_is_in_use_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    before = (tmp_path / "empty" / SINGLE).stat()
    with pytest.raises(WeightsError, match="it exists and is not empty"):
        save(tmp_path / "empty")
    assert (tmp_path / "empty" / SINGLE).stat() == before
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match=r"file cannot be written: .*Not a directory"):
        save(tmp_path / "file")
    with pytest.raises(WeightsError, match="cannot be written"):
        save(tmp_path / "file" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_files_that_came_meanwhile_are_kept(tmp_path):
    with pytest.raises(WeightsError, match="cannot be written"), new_directory(tmp_path / "model"):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "other").write_text("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "other").read_text() == "mine"


@pytest.mark.parametrize("bad", [np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float16)])
def test_an_array_that_is_not_as_promised(tmp_path, bad):
    promised = {"a": TensorInfo((2, 3), DTYPES["F32"], tmp_path)}
    with pytest.raises(ValueError, match=r"'a' is .*promised: float32\(2, 3\)"):
        write(tmp_path / "model", promised, lambda name: bad)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="'a' is float64; allowed: float32, bfloat16, float16"):
        save(tmp_path / "model", {"a": np.zeros(1)})
    with pytest.raises(ValueError, match="no tensors"):
        save(tmp_path / "model", {})
    assert list(tmp_path.iterdir()) == []


def test_one_tensor_at_a_time_is_written(tmp_path):
    """Each array is gone before the next is asked for, whatever the shard's size."""
    alive = []

    def read(name):
        gc.collect()
        assert not [ref for ref in alive if ref() is not None]
        array = np.zeros(4, np.float32)
        alive.append(weakref.ref(array))
        return array

    write(tmp_path / "model", {name: TensorInfo((4,), DTYPES["F32"], tmp_path) for name in "abc"}, read)
    assert len(alive) == 3
