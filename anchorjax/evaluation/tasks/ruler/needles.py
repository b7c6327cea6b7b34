"""Needles in a haystack: values of keys hidden in noise, in essays, or among other needles."""

import dataclasses
import functools
import random
from collections.abc import Callable
from typing import Literal

import numpy as np

from anchorjax.evaluation.tasks.ruler import vocabulary
from anchorjax.evaluation.tasks.ruler.haystack import NOISE, Essays, open_essays
from anchorjax.evaluation.tasks.ruler.sample import UNLIMITED, Draft, Recipe, Setting

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
# Percent of the sentences that are over where a needle of an essay can be.
DEPTHS = tuple(int(depth) for depth in np.round(np.linspace(0, 100, 40)))

_DRAW = {"numbers": vocabulary.number, "uuids": vocabulary.uuid4, "words": vocabulary.pair}
_ASK_MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?"
)
_ASK_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text?"
)
_PREFIX = " The special magic {kind} for {query} mentioned in the provided text {be}"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A needle task: what the haystack is, what keys and values are, and how many of each there are."""

    haystack: Literal["noise", "essays", "needles"]
    key: Literal["words", "uuids"] = "words"
    value: Literal["numbers", "uuids"] = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


def recipes(kind: Kind, setting: Setting) -> Callable[[random.Random, int], Recipe]:
    essays = open_essays(setting.essays) if kind.haystack == "essays" else None
    return lambda rng, index: NeedleRecipe(kind, rng, essays)


class NeedleRecipe:
    """A unit of filler is a word of the essays, a line of noise, or another needle."""

    def __init__(self, kind: Kind, rng: random.Random, essays: Essays | None, depths: tuple[float, ...] | None = None):
        """`depths` in percent, one for each needle, and of the essays' words; without them drawn as in RULER."""
        self.kind = kind
        self._by_words = depths is not None
        self.essays = essays
        self.smallest = 1
        self.largest = UNLIMITED
        keys = vocabulary.different(lambda: _DRAW[kind.key](rng), kind.keys)
        values = iter(vocabulary.different(lambda: _DRAW[kind.value](rng), kind.keys * kind.values))
        found = [(key, next(values)) for key in keys for _ in range(kind.values)]  # in the order of the answer
        asked = rng.sample(keys, kind.queries)
        self.asked = asked
        self.references = tuple(value for query in asked for key, value in found if key == query)
        rng.shuffle(found)
        self.needles = [NEEDLE.format(kind=kind.value, key=key, value=value) for key, value in found]
        self.values = [value for _, value in found]
        if depths is None and kind.haystack == "essays":
            depths = rng.sample(DEPTHS, len(found))
        elif depths is None:
            depths = [100 * rng.random() for _ in found]
        self.depths = sorted(depths)
        self._taboo = [*keys, *self.values]
        self._distractors: list[str] = []
        self._rng = random.Random(rng.getrandbits(64))  # draws distractors, the same however often they are asked for

    def draft(self, size: int) -> Draft:
        context, depths = self._hide(size)
        depth_of = dict(zip(self.values, depths, strict=True))
        one = len(self.references) == 1
        kind = self.kind.value.removesuffix("s") if one else self.kind.value
        query = ", ".join(self.asked[:-1]) + ", and " + self.asked[-1] if len(self.asked) > 1 else self.asked[0]
        return Draft(
            prompt=(_ASK_ONE if one else _ASK_MANY).format(kind=kind, context=context, query=query),
            answer_prefix=_PREFIX.format(kind=kind, query=query, be="is" if one else "are"),
            references=self.references,
            depths=tuple(depth_of[value] for value in self.references),
            material=self.essays.material if self.essays else "",
        )

    def _hide(self, size: int) -> tuple[str, list[float]]:
        """The haystack with its needles, and at which depths they are."""
        if self.essays:
            return self.essays.insert(size, self.needles, self.depths, self._by_words), self.depths
        lines = [NOISE] * size if self.kind.haystack == "noise" else self._other_needles(size)
        places = [int(size * (depth / 100)) for depth in self.depths]
        for needle, place in reversed(list(zip(self.needles, places, strict=True))):
            lines.insert(place, needle)
        return "\n".join(lines), [100 * place / size for place in places]

    def _other_needles(self, count: int) -> list[str]:
        draw_key, draw_value = _DRAW[self.kind.key], _DRAW[self.kind.value]
        while len(self._distractors) < count:
            key, value = draw_key(self._rng), draw_value(self._rng)
            if not any(word in key or word in value for word in self._taboo):
                self._distractors.append(NEEDLE.format(kind=self.kind.value, key=key, value=value))
        return self._distractors[:count]


KINDS = {
    "niah_single_1": Kind("noise"),
    "niah_single_2": Kind("essays"),
    "niah_single_3": Kind("essays", value="uuids"),
    "niah_multikey_1": Kind("essays", keys=4),
    "niah_multikey_2": Kind("needles"),
    "niah_multikey_3": Kind("needles", key="uuids", value="uuids"),
    "niah_multivalue": Kind("essays", values=4),
    "niah_multiquery": Kind("essays", keys=4, queries=4),
}
RECIPES = {name: functools.partial(recipes, kind) for name, kind in KINDS.items()}
