"""index.json of a token store on disk: its arrays, their origin, and checksums.

tokens.bin     num_tokens ids end to end, little-endian uint16 or uint32, no header
offsets.npy    int64 [num_documents + 1]
sources.npy    int16 [num_documents], indices of `source_names`
trained.bin    num_tokens bytes, 1 for a token that is trained on and 0 for others; only in a store of conversations
index.json     this file
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from anchorjax.errors import DataError
from anchorjax.files import read_json

FORMAT = 3  # goes up when an older reader would misread a store
CONVERSATIONS = 4  # FORMAT with trained.bin, without which a store would be trained on as a whole
OLDER = 2  # same tokens as FORMAT, without these counts:
_NOT_COUNTED = {"marks": 0, "lost": {}, "lacking": {}}
FILE, TOKENS, OFFSETS, SOURCES, TRAINED = "index.json", "tokens.bin", "offsets.npy", "sources.npy", "trained.bin"
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
MAX_SOURCES = 2**15 - 1  # int16


@dataclasses.dataclass(frozen=True)
class Index:
    """The fields of index.json.

    Attributes:
      tokenizer: its name, which identifies the encoding.
      dtype: of tokens.bin, a key of DTYPES.
      source_documents, source_tokens: counts, one per name of `source_names`.
      sha256: file name -> hex digest.
      fingerprint: see `TokenStore`.
      made_from: the configuration's data.source.
      rows: how many rows of the inputs were read.
      bad_rows: how many of them were left out, by reason; `bad_places`: the places of the first ones.
      weighted_out: documents left out by a weight below 1.
      marks: byte order marks that were removed from the beginning of files.
      lost: characters that the tokenizer lost, by name ("U+0004"); see `round_trip`.
      lacking: documents without a source, by reason.
      trained_tokens: how many tokens of a store of conversations are trained on; None in a store of texts, whose file
        has no such key.

    Counts of rows cover both splits, and count every document once, whatever its weight.
    """

    tokenizer: str
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    dtype: str
    num_tokens: int
    num_documents: int
    source_names: list
    source_documents: list
    source_tokens: list
    sha256: dict
    fingerprint: str
    made_from: str
    rows: int
    bad_rows: dict
    bad_places: dict
    weighted_out: int
    marks: int
    lost: dict
    lacking: dict
    trained_tokens: int | None = None
    format: int = FORMAT

    def write(self, directory: Path) -> None:
        content = dataclasses.asdict(self)
        if self.trained_tokens is None:
            del content["trained_tokens"]
        (directory / FILE).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path) -> "Index":
        """Reads index.json. Raises DataError if it is missing, has another format or has impossible values."""
        file = directory / FILE
        content = read_json(file, DataError)
        if content is None:
            raise DataError(f"{directory} is not a token store: {file} does not exist")
        if content.get("format") == OLDER:
            content = _NOT_COUNTED | content
        elif content.get("format") not in (FORMAT, CONVERSATIONS):
            allowed = f"this version reads formats {OLDER} to {CONVERSATIONS}"
            raise DataError(f"{file} has format {content.get('format')!r}; {allowed}")
        _check(file, content)
        return cls(**content)


def _check(file: Path, content: dict[str, Any]) -> None:
    kinds = {field.name: field.type for field in dataclasses.fields(Index)} | {"trained_tokens": int}
    files = {TOKENS, OFFSETS, SOURCES}
    if content["format"] == CONVERSATIONS:
        files |= {TRAINED}
    else:
        del kinds["trained_tokens"]
    if content.keys() != kinds.keys():
        raise DataError(f"{file} is damaged: its keys differ in {', '.join(sorted(content.keys() ^ kinds.keys()))}")
    for name, kind in kinds.items():
        value = content[name]
        if type(value) is not kind or (kind is int and value < 0):
            raise DataError(f"{file} is damaged: {name} is {value!r}, not a {kind.__name__}")
    if content["dtype"] not in DTYPES:
        raise DataError(f"{file} is damaged: dtype is {content['dtype']!r}; allowed: {', '.join(DTYPES)}")
    for name in ("source_names", "source_documents", "source_tokens"):
        if len(content[name]) != len(content["source_names"]):
            raise DataError(f"{file} is damaged: {name} has {len(content[name])} values")
    if content["sha256"].keys() != files:
        raise DataError(f"{file} is damaged: sha256 names {', '.join(content['sha256'])}")
