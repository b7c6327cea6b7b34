"""Documents of a sized source (see `sources.load`), in ranges that several processes can read."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from anchorjax.data import sources
from anchorjax.data.documents import BadRow, Document, Fields

PART_DOCUMENTS = 2**16  # the same for any number of processes


@dataclasses.dataclass(frozen=True)
class SequenceRange:
    """A shard: documents begin to end - 1 of a split of a source, which each process opens for itself."""

    source: str
    from_split: str
    data_dir: str
    begin: int
    end: int
    fields: Fields
    split: str | None
    files: tuple[Path, ...] = ()  # a prepared data set never changes; a change gets another version

    @property
    def name(self) -> str:
        return f"{self.source}/{self.from_split}@{self.begin}"

    def rows(self) -> Iterator[tuple[int, Document | BadRow]]:
        documents = sources.load(self.source, self.from_split, self.data_dir)
        for number in range(self.begin, self.end):
            try:
                row = documents[number]
            except UnicodeDecodeError:
                row = BadRow("not UTF-8")
            yield number, self.fields.document(row)

    def place(self, number: int) -> str:
        return f"{self.source}/{self.from_split}:{number}"


def shards(source: str, data_dir: str, fields: Fields) -> list[SequenceRange]:
    """Returns all documents as shards; a part of "train" is held out if there is no split "validation".

    Raises:
      ValueError: no such source, or no split "train".
    """
    lengths = {"train": len(sources.load(source, "train", data_dir))}
    try:
        lengths["validation"] = len(sources.load(source, "validation", data_dir))
    except ValueError:
        return _ranges(source, "train", data_dir, lengths["train"], fields, None)
    return [
        shard for split, length in lengths.items() for shard in _ranges(source, split, data_dir, length, fields, split)
    ]


def _ranges(source, from_split, data_dir, length, fields, split) -> list[SequenceRange]:
    return [
        SequenceRange(source, from_split, data_dir, begin, min(begin + PART_DOCUMENTS, length), fields, split)
        for begin in range(0, length, PART_DOCUMENTS)
    ]
