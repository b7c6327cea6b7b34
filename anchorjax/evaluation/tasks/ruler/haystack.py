"""What needles are hidden in: RULER's noise, and essays that are cut behind sentences."""

import dataclasses
import functools
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anchorjax.data import files
from anchorjax.data.sources.public_domain import CORPUS
from anchorjax.data.text import text_file
from anchorjax.errors import EvaluationError

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_SUFFIXES = (".json", ".txt", ".md")
_END = re.compile(r"""[.!?]["'”’)\]_]*$""")
# Words with a full stop that mostly stand before a name or within a sentence, and initials.
_NO_END = re.compile(r"""["'“‘(\[_]*((Mr|Mrs|Ms|Messrs|Dr|St|Rev|Capt|Col|Esq|vs|etc|e\.g|i\.e|cf|No|[A-Z])\.)$""")


@dataclasses.dataclass(frozen=True, eq=False)
class Essays:
    """Running text, word by word; what is longer than it repeats it, as RULER does.

    Attributes:
      material: what it is, for those who read scores.
      words: the text, split at white space.
      ends_S: int64 [S], ascending: how many words the text has up to the end of each sentence.
    """

    material: str
    words: tuple[str, ...]
    ends_S: np.ndarray = dataclasses.field(repr=False)

    @classmethod
    def of(cls, material: str, text: str) -> "Essays":
        words = tuple(text.split())
        if not words:
            raise EvaluationError(f"{material} holds no text")
        ends = [i + 1 for i, word in enumerate(words) if _END.search(word) and not _NO_END.match(word)]
        if not ends or ends[-1] != len(words):
            ends.append(len(words))  # a repetition begins a new sentence
        return cls(material, words, np.asarray(ends, np.int64))

    def insert(self, size: int, needles: Sequence[str], depths: Sequence[float], by_words: bool = False) -> str:
        """The first `size` words, with needle i behind the sentence with which `depths[i]` percent are over.

        It is a percentage of sentences, as in RULER; `by_words` goes by words, to the nearest end of a sentence: tokens
        in the mean, whatever the sentences are like. `depths` ascend. As in RULER a space stands before a needle at the
        very beginning and behind one at the end.
        """
        repeats = -(-size // len(self.words))
        words = self.words * repeats if repeats > 1 else self.words
        ends = np.concatenate([self.ends_S + i * len(self.words) for i in range(repeats)])
        cuts = np.concatenate([[0], ends[: np.searchsorted(ends, size)], [size]])  # the last sentence may be cut
        if by_words:
            starts = [int(cuts[np.argmin(np.abs(cuts - size * depth / 100))]) for depth in depths]
        else:
            starts = [int(cuts[int((len(cuts) - 1) * (depth / 100))]) for depth in depths]
        parts = []
        for needle, first, last in zip(needles, [0, *starts], starts, strict=False):
            parts += [" ".join(words[first:last]), needle]
        return " ".join([*parts, " ".join(words[starts[-1] : size])])


def open_essays(path: Path | None) -> Essays:
    """The text of a file or folder; without one the novels that ship.

    Raises EvaluationError, or DataError for a folder: it cannot be read.
    """
    return _austen() if path is None else _from_path(Path(path).expanduser())


@functools.cache
def _austen() -> Essays:
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    text = " ".join(document["text"] for document in documents if document["source"] == "austen")
    return Essays.of("novels of Jane Austen, not RULER's essays", text)


@functools.cache
def _from_path(path: Path) -> Essays:
    """One file, or all of a folder by name: text, or a JSON object with it under "text" (PaulGrahamEssays.json)."""
    try:
        inside = files.find(str(path), _SUFFIXES) if path.is_dir() else [path]
    except ValueError as error:
        raise EvaluationError(f"essays={path} holds no file that ends in {', '.join(_SUFFIXES)}") from error
    texts = [_read(file) for file in inside]
    text_file.say_marks(f"essays={path}", sum(is_marked for _, is_marked in texts))
    return Essays.of(f"essays of {path.name}", " ".join(text for text, _ in texts))


def _read(file: Path) -> tuple[str, bool]:
    """(the text, whether a byte order mark was left out)."""
    try:
        content, is_marked = text_file.read(file)
        if not files.ends_with(file.name, (".json",)):
            return content, is_marked
        text = json.loads(content)["text"]
        json.dumps(text, ensure_ascii=False).encode()  # refuses half a surrogate pair, as a tokenizer would
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f'essays={file} is no text, nor JSON with a text under "text": {error!r}') from error
    if not isinstance(text, str):
        raise EvaluationError(f'essays={file}: "text" is a {type(text).__name__}; it must be a string')
    return text, is_marked
