"""Conversations about the shipped books, made by rule: something to try supervised fine-tuning with, without network.

    python -m anchorjax.data.book_conversations data/conversations.jsonl
    anchorjax prepare --config=smollm2_135m_sft
    anchorjax train --config=smollm2_135m_sft --workdir=runs/sft

Each line is {"messages": [...], "source": KIND}; the kinds are in KINDS. The answers are words of the books, so they
are right, but the questions are three patterns: no instruction data to train a model for use. A passage may be in
several conversations, on both sides of the held-out split.
"""

import argparse
import gzip
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from anchorjax.data.sources.public_domain import CORPUS
from anchorjax.errors import DataError, run_program
from anchorjax.files import write_atomically
from anchorjax.parsing import Parser, on_disk

PROGRAM = "anchorjax.data.book_conversations"
EACH = 2  # conversations of each kind from one chapter
_FEWEST = 300  # words of a chapter that is asked about
Messages = list[dict[str, str]]


def continuation(words: Sequence[str], rng: random.Random) -> Messages:
    """Asks for the next 40 words of a passage of 40 to 120."""
    passage, rest = _cut(words, rng, rng.randint(40, 120), 40)
    return _said(f"Continue this passage:\n\n{passage}", rest)


def next_word(words: Sequence[str], rng: random.Random) -> Messages:
    """Shows a passage of 80 to 240 words, and asks three times which word follows four others in it."""
    passage, _ = _cut(words, rng, rng.randint(80, 240), 0)
    return _asked(passage, "Which word follows {!r} in it?", 4, 1, rng)


def lookup(words: Sequence[str], rng: random.Random) -> Messages:
    """Shows a long passage, up to 900 words, and asks three times what it says after six words of it."""
    passage, _ = _cut(words, rng, min(len(words), rng.randint(300, 900)), 0)
    return _asked(passage, "What does it say after {!r}? Quote ten words.", 6, 10, rng)


KINDS: dict[str, Callable[[Sequence[str], random.Random], Messages]] = {
    "continuation": continuation,
    "next_word": next_word,
    "lookup": lookup,
}


def make(seed: int = 0, chapters: int = 0) -> Iterator[dict]:
    """Yields the conversations of the first `chapters` chapters (0: all); the same for the same seed."""
    rng = random.Random(seed)
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if chapters and number >= chapters:
                return
            words = re.sub(r"\s+", " ", json.loads(line)["text"]).strip().split(" ")
            if len(words) < _FEWEST:
                continue
            for kind, said in KINDS.items():
                for _ in range(EACH):
                    yield {"messages": said(words, rng), "source": kind}


def _cut(words: Sequence[str], rng: random.Random, length: int, more: int) -> tuple[str, str]:
    first = rng.randrange(len(words) - length - more + 1)
    end = first + length
    return " ".join(words[first:end]), " ".join(words[end : end + more])


def _asked(passage: str, question: str, shown: int, answered: int, rng: random.Random) -> Messages:
    """Three questions about one passage. What is shown occurs in it once, so there is one answer."""
    words, messages = passage.split(" "), []
    places = list(range(len(words) - shown - answered + 1))
    rng.shuffle(places)
    for place in places:
        given = " ".join(words[place : place + shown])
        if passage.count(given) > 1:
            continue
        before = "" if messages else f"Read this passage:\n\n{passage}\n\n"
        messages += _said(before + question.format(given), " ".join(words[place + shown : place + shown + answered]))
        if len(messages) == 6:
            break
    return messages


def _said(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(PROGRAM, __doc__.splitlines()[0])
    parser.add_argument("file", type=on_disk, help="JSONL file to write")
    parser.add_argument("--seed", type=int, default=0, help="draws passages and questions")
    parser.add_argument("--chapters", type=int, default=0, help="take the first so many; 0: all")
    arguments = parser.parse_args(argv)
    return run_program(PROGRAM, lambda: _write(arguments))


def _write(arguments: argparse.Namespace) -> None:
    """Raises DataError if the file cannot be written."""
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in make(arguments.seed, arguments.chapters)]
    try:
        arguments.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.file, "".join(rows))
    except OSError as error:
        raise DataError(f"{arguments.file} cannot be written: {error.strerror}") from error
    print(f"{len(rows):,} conversations in {arguments.file}")


if __name__ == "__main__":
    sys.exit(main())
