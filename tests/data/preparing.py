"""Files of documents and configurations of the data section, for tests of sources and stores."""

import dataclasses
import gzip
import json
import pathlib

import pyarrow
import pyarrow.parquet

from anchorjax.config import DataConfig
from anchorjax.data.store import preparing
from anchorjax.data.store.tokens import TokenStore
from anchorjax.data.text.tokenizer import ByteTokenizer
from tests import tiny

BYTES = ByteTokenizer()


def data_config(**changes) -> DataConfig:
    return dataclasses.replace(tiny.config().data, **changes)


def prepare(tmp_path: pathlib.Path, source: str, **changes) -> tuple[TokenStore, TokenStore]:
    """The two stores, train and validation, of a preparation in `tmp_path/store`."""
    changes = {"held_out_share": 0.3} | changes
    preparing.prepare(data_config(source=source, store=str(tmp_path / "store"), **changes))
    return TokenStore.open(tmp_path / "store" / "train"), TokenStore.open(tmp_path / "store" / "validation")


def texts(store: TokenStore) -> list[str]:
    return [BYTES.decode(store.document(i)) for i in range(store.num_documents)]


def sources(store: TokenStore) -> list[str]:
    return [store.source_names[i] for i in store.sources]


def json_lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write_jsonl(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    data = json_lines(rows)
    if path.suffix == ".gz":
        half = data.index(b"\n", len(data) // 2) + 1 if len(rows) > 1 else len(data)
        data = gzip.compress(data[:half]) + gzip.compress(data[half:])  # as parallel compressors write
    elif path.suffix == ".zst":
        half = len(data) // 2
        data = b"".join(pyarrow.compress(part, codec="zstd", asbytes=True) for part in (data[:half], data[half:]))
    path.write_bytes(data)
    return path


def write_parquet(path: pathlib.Path, rows: list[dict], group: int = 3) -> pathlib.Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def write_arrow(path: pathlib.Path, rows: list[dict], streaming: bool = True) -> pathlib.Path:
    table = pyarrow.Table.from_pylist(rows)
    new = pyarrow.ipc.new_stream if streaming else pyarrow.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def write_array_record(path: pathlib.Path, records: list[bytes]) -> pathlib.Path:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path
