"""What keys, values and lists are made of: the words of the package wonderwords, as in RULER, numbers and uuids."""

import functools
import importlib.resources
import random
import uuid


@functools.cache
def words(kind: str) -> tuple[str, ...]:
    """Different "adjective"s, "noun"s or "verb"s in alphabetical order: 910, 6,782 and 1,041 of them."""
    file = importlib.resources.files("wonderwords").joinpath("assets", f"{kind}list.txt")
    return tuple(sorted({line.rstrip() for line in file.read_text(encoding="utf-8").splitlines()} - {""}))


@functools.cache
def all_words() -> tuple[str, ...]:
    """Those of the three kinds, each once, in alphabetical order."""
    return tuple(sorted({*words("adjective"), *words("noun"), *words("verb")}))


def pair(rng: random.Random) -> str:
    """One of six million: "elated-weasel"."""
    return f"{rng.choice(words('adjective'))}-{rng.choice(words('noun'))}"


def number(rng: random.Random) -> str:
    """Seven digits, the first not 0."""
    return str(rng.randint(1_000_000, 9_999_999))


def uuid4(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def letters(rng: random.Random, count: int, alphabet: str) -> str:
    return "".join(rng.choices(alphabet, k=count))


def different(draw, count: int) -> list[str]:
    """`count` results of `draw`, all different, in the order in which they first came."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)
