"""Joins pieces into a store: copies the arrays end to end and hashes them. See `pieces.py` and `index.py`."""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from anchorjax.config import DataConfig
from anchorjax.data.store import index as index_lib
from anchorjax.data.store import pieces
from anchorjax.data.store.index import DTYPES, Index
from anchorjax.data.store.pieces import Report
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import DataError

_VALUES_AT_ONCE = 2**20


class _Hashed:
    """A file that is written once, with its sha256."""

    def __init__(self, path: Path):
        self.path, self._digest = path, hashlib.sha256()

    def __enter__(self) -> "_Hashed":
        self._file: BinaryIO = open(self.path, "wb")
        return self

    def __exit__(self, *_) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def join(directory: Path, out: Path, split: str, tokenizer: Tokenizer, config: DataConfig) -> Index:
    """Writes the store of one split into the empty directory `out`.

    Args:
      directory: has complete pieces, numbered from 0.
      config: that of the preparation.

    Raises:
      DataError: too many sources, or a piece that does not match its JSON file.
    """
    heads = list(_heads(directory))
    report = Report()
    for head in heads:
        report.add(Report.of(head))
    counts = [head[split] for head in heads]
    num_documents = sum(count["documents"] for count in counts)
    names: dict[str, int] = {}
    for count in counts:
        for name in count["source_names"]:
            names.setdefault(name, len(names))
    if len(names) > index_lib.MAX_SOURCES:
        raise DataError(
            f"there are {len(names)} sources, more than {index_lib.MAX_SOURCES}, such as {next(reversed(names))!r}; "
            "set data.source_key to a name that many documents share"
        )
    dtype, mark = pieces.dtype_name(tokenizer, config), hashlib.sha256(tokenizer.name.encode())
    files = [_Hashed(out / name) for name in (index_lib.TOKENS, index_lib.OFFSETS, index_lib.SOURCES)]
    top = tokenizer.vocab_size - 1
    by_source = np.zeros((2, len(names)), np.int64)  # documents, tokens
    with files[0] as file:
        for number, count in enumerate(counts):
            for block in _blocks(directory, number, split, "tokens", DTYPES[dtype], count["tokens"]):
                file.write(block.data)
                mark.update(block.data)
                top = max(top, int(block.max()))
    with files[1] as file:
        file.write(_npy_header("<i8", num_documents + 1))
        at = np.zeros(1, "<i8")
        file.write(at.data)
        mark.update(at.data)
        for number, count in enumerate(counts):
            for block in _blocks(directory, number, split, "lengths", "<i8", count["documents"]):
                ends = at[-1] + np.cumsum(block)
                file.write(ends.data)
                mark.update(ends.data)
                at = ends[-1:]
    with files[2] as file:
        file.write(_npy_header("<i2", num_documents))
        for number, count in enumerate(counts):
            here = np.asarray([names[name] for name in count["source_names"]], "<i2")
            lengths = _blocks(directory, number, split, "lengths", "<i8", count["documents"])
            blocks = _blocks(directory, number, split, "sources", "<i4", count["documents"])
            for block, length in zip(blocks, lengths, strict=True):
                ids = here[block]
                file.write(ids.data)
                mark.update(ids.data)
                by_source[0] += np.bincount(ids, minlength=len(names))
                by_source[1] += np.bincount(ids, length, len(names)).astype(np.int64)
    mark.update(json.dumps(list(names)).encode())
    if config.messages_key:
        files.append(_Hashed(out / index_lib.TRAINED))
        with files[3] as file:
            for number, count in enumerate(counts):
                for block in _blocks(directory, number, split, pieces.TRAINED, "u1", count["tokens"]):
                    file.write(block.data)
                    mark.update(block.data)
    index = Index(
        tokenizer=tokenizer.name,
        vocab_size=top + 1,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        dtype=dtype,
        num_tokens=sum(count["tokens"] for count in counts),
        num_documents=num_documents,
        source_names=list(names),
        source_documents=by_source[0].tolist(),
        source_tokens=by_source[1].tolist(),
        sha256={file.path.name: file.hexdigest() for file in files},
        fingerprint=mark.hexdigest(),
        made_from=config.source,
        rows=report.rows,
        bad_rows=report.bad,
        bad_places=report.places,
        weighted_out=report.weighted_out,
        marks=report.marks,
        lost=report.lost,
        lacking=report.lacking,
        trained_tokens=sum(count["trained"] for count in counts) if config.messages_key else None,
        format=index_lib.CONVERSATIONS if config.messages_key else index_lib.FORMAT,
    )
    index.write(out)
    return index


def _heads(directory: Path) -> Iterator[dict[str, Any]]:
    number = 0
    while (head := pieces.done(directory, number)) is not None:
        yield head
        number += 1


def _blocks(directory: Path, number: int, split: str, array: str, dtype: str, length: int) -> Iterator[np.ndarray]:
    path = pieces.file_of(directory, number, split, array)
    size, expected = path.stat().st_size, length * np.dtype(dtype).itemsize
    if size != expected:
        raise DataError(f"{path} is damaged: it has {size} bytes, not {expected}; remove {path.parent} to begin again")
    with open(path, "rb") as file:
        while data := file.read(_VALUES_AT_ONCE * np.dtype(dtype).itemsize):
            yield np.frombuffer(data, dtype)


def _npy_header(descr: str, length: int) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": (length,)})
    return buffer.getvalue()
