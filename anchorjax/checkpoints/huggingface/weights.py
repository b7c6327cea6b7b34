"""The tensors of a model directory, by name.

Reading knows two layouts: `model.safetensors`, or shards that `model.safetensors.index.json` lists. `open` checks
all files and reads headers only; a tensor is read on demand. Pickles are never read, whatever their name: they can run
any code.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import ml_dtypes
import numpy as np

from anchorjax.checkpoints.huggingface.directory import member
from anchorjax.errors import WeightsError
from anchorjax.files import read_json

if TYPE_CHECKING:
    from safetensors import safe_open

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
# Buffers in old Llama checkpoints, in fp32 beside bf16 weights. They are not weights: the configuration defines them.
BUFFERS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
SHARD_BYTES = 5 * 10**9
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class Shaped(Protocol):
    """Anything with a shape and a dtype: a TensorInfo, an array, a jax.ShapeDtypeStruct."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor on disk: `dtype` is float32, bfloat16 (of ml_dtypes) or float16."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path


@dataclasses.dataclass(frozen=True)
class Weights:
    """All tensors of `directory`; made by `open`."""

    directory: Path
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, directory: str | Path) -> "Weights":
        """Reads the headers of all files.

        Raises:
          WeightsError: there are no safetensors; a file is missing, damaged, of another format or outside of
            the directory; index and shards disagree; a tensor is in two shards or of another dtype.
        """
        directory = Path(directory).expanduser()
        weight_map = _weight_map(directory)
        tensors = {}
        for name in [SINGLE] if weight_map is None else sorted(set(weight_map.values())):
            for tensor, info in _header(member(directory, name)).items():
                if tensor in tensors:
                    raise WeightsError(f"{directory}: {tensor!r} is in both {tensors[tensor].file.name} and {name}")
                tensors[tensor] = info
        if weight_map is not None:
            _compare(directory / INDEX, weight_map, tensors)
        return cls(directory, tensors)

    @property
    def dtype(self) -> str:
        """The dtype of all weights; float32 if they differ."""
        dtypes = {str(info.dtype) for name, info in self.tensors.items() if not name.endswith(BUFFERS)}
        return dtypes.pop() if len(dtypes) == 1 else "float32"

    def read(self, name: str) -> np.ndarray:
        """Reads the tensor `name` into new memory. Raises WeightsError if it does not exist, or its file changed."""
        if name not in self.tensors:
            raise WeightsError(f"{self.directory} has no tensor {name!r}")
        info = self.tensors[name]
        with _opened(info.file) as file:
            array = file.get_tensor(name)
        if (array.shape, array.dtype) != (info.shape, info.dtype):
            raise WeightsError(f"{info.file} changed while it was being read: {name!r} is another tensor now")
        return array


def _weight_map(directory: Path) -> dict[str, str] | None:
    """Returns the shard of each tensor from the index; None if there is one file and no index."""
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise WeightsError(f"{directory} cannot be read: {error.strerror or error}") from error
    if INDEX not in names:
        if SINGLE not in names:
            raise WeightsError(_nothing_to_read(directory, sorted(names)))
        return None
    file = member(directory, INDEX)
    weight_map = (read_json(file, WeightsError) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{file} has no weight_map with the shard of each tensor")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise WeightsError(f"{file}: {tensor!r} is listed in {shard!r}; only safetensors are read")
    if SINGLE in names and SINGLE not in weight_map.values():
        raise WeightsError(f"{directory} has both {SINGLE} and {INDEX}, which does not list it: remove one")
    return weight_map


def _nothing_to_read(directory: Path, names: list[str]) -> str:
    pickles = [name for name in names if name.endswith(_PICKLES)]
    others = [name for name in names if name.endswith(".safetensors")]
    reason = f"{directory} has neither {SINGLE} nor {INDEX}"
    if others:
        return f"{reason}, only {', '.join(others)}"
    if pickles:
        return f"{reason}, only {', '.join(pickles)}: only safetensors are read, since pickles can run any code"
    return reason


def _compare(index: Path, weight_map: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    for name, shard in weight_map.items():
        if name not in tensors:
            raise WeightsError(f"{index}: {name!r} is listed in {shard}, which lacks it")
        if (found := tensors[name].file.name) != shard:
            raise WeightsError(f"{index}: {name!r} is listed in {shard}, but is in {found}")
    for name, info in tensors.items():
        if name not in weight_map:
            raise WeightsError(f"{info.file}: {name!r} is not in {INDEX}")


def _header(path: Path) -> dict[str, TensorInfo]:
    tensors = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            entry = file.get_slice(name)
            if entry.get_dtype() not in DTYPES:
                raise WeightsError(f"{path}: {name!r} is {entry.get_dtype()}; allowed: {', '.join(DTYPES)}")
            tensors[name] = TensorInfo(tuple(entry.get_shape()), DTYPES[entry.get_dtype()], path)
    if not tensors:
        raise WeightsError(f"{path} holds no tensors")
    return tensors


@contextlib.contextmanager
def _opened(path: Path) -> "Iterator[safe_open]":
    from safetensors import SafetensorError, safe_open  # not needed for random weights

    try:
        # pread: a file that is cut while it is mapped would kill the process.
        with safe_open(path, framework="np", backend="pread") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {_disguise(path) or error}") from error


def _disguise(path: Path) -> str | None:
    """Returns what a file that is not safetensors is, by its first bytes; None if unknown."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError:
        return None
    if head.startswith(b"PK\x03\x04"):
        return "it is a zip archive, as torch.save makes them of pickles"
    # 0x80 and a protocol number; a safetensors header of 640 bytes starts so too, but then come zeros.
    if head[:1] == b"\x80" and head[1:2] in b"\1\2\3\4\5" and head[2:3] != b"\0":
        return "it is a pickle"
    if head.startswith(b"version https:/"):
        return "it is a Git LFS pointer; `git lfs pull` fetches the file"
    return None


def write_files(
    directory: Path,
    tensors: Mapping[str, Shaped],
    read: Callable[[str], np.ndarray],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes weights into an existing directory, in the order given: one file, or shards and their index.

    Args:
      tensors: shapes and dtypes of all tensors, needed before the first value.
      read: returns the values of one tensor; called once for each, and none is kept.
      shard_bytes: the largest shard, unless it has a single tensor.

    Raises:
      ValueError: no tensors, a dtype that is not in DTYPES, or an array that is not as `tensors` says.
      OSError: the disk is full, or the like.
    """
    for name, info in tensors.items():
        if info.dtype not in _CODES:
            raise ValueError(f"{name!r} is {info.dtype}; allowed: {', '.join(map(str, _CODES))}")
    shards = _split(tensors, shard_bytes)
    if not shards:
        raise ValueError("there are no tensors to write")
    if len(shards) == 1:
        return _write_shard(directory / SINGLE, tensors, shards[0], read)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(directory / file, tensors, names, read)
        weight_map |= dict.fromkeys(names, file)
    total = sum(_num_bytes(info) for info in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def order(tensors: Mapping[str, Shaped], shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Returns the names in the order in which `write_files` reads them."""
    return [name for names in _split(tensors, shard_bytes) for name in _aligned(tensors, names)]


def _aligned(tensors: Mapping[str, Shaped], names: list[str]) -> list[str]:
    """Returns the names of a shard so that each tensor is aligned to the size of its numbers."""
    return sorted(names, key=lambda name: -tensors[name].dtype.itemsize)


def _split(tensors: Mapping[str, Shaped], shard_bytes: int) -> list[list[str]]:
    """Returns the names of each shard."""
    shards, room = [], 0
    for name, info in tensors.items():
        if not shards or _num_bytes(info) > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= _num_bytes(info)
    return shards


def _num_bytes(info: Shaped) -> int:
    return int(np.prod(info.shape, dtype=np.int64)) * info.dtype.itemsize


def _write_shard(
    path: Path, tensors: Mapping[str, Shaped], names: list[str], read: Callable[[str], np.ndarray]
) -> None:
    """Writes the format: the header's length, the header, the bytes. The library's writer needs all tensors at once."""
    names = _aligned(tensors, names)
    header, end = {"__metadata__": {"format": "pt"}}, 0  # without it, transformers does not load the file
    for name in names:
        start, end = end, end + _num_bytes(tensors[name])
        code = _CODES[tensors[name].dtype]
        header[name] = {"dtype": code, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_bytes(name, tensors[name], read(name)))  # no name keeps one tensor while the next is made


def _bytes(name: str, promised: Shaped, array: np.ndarray) -> np.ndarray:
    """Returns a uint8 view of the values in C order, or of a copy if they are not contiguous."""
    if (array.shape, array.dtype) != (tuple(promised.shape), promised.dtype):
        raise ValueError(f"{name!r} is {array.dtype}{array.shape}; promised: {promised.dtype}{promised.shape}")
    return array.ravel().view(np.uint8)
