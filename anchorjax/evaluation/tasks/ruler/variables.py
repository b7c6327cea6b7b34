"""vt: variable tracking. A chain of five variables is spread over noise; each is given the value of the one before."""

import dataclasses
import random
import string
from collections.abc import Callable

from anchorjax.evaluation.tasks.ruler import vocabulary
from anchorjax.evaluation.tasks.ruler.haystack import NOISE
from anchorjax.evaluation.tasks.ruler.sample import UNLIMITED, Draft, Recipe, Setting

HOPS = 4
_ASK = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above."
)
_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned the "
    "value {value}, they are: "
)
_EXAMPLE_TOKENS = 500  # as in RULER, together with the 30 of its answer
_EXAMPLE_ANSWER = 30
_EXAMPLE_LINES = (*range(1, 5), *range(5, 100, 5))  # RULER goes in steps of five; fewer for short lengths


@dataclasses.dataclass(frozen=True)
class Chain:
    """Variables, the value of them all, and a seed for where their assignments stand."""

    names: tuple[str, ...]
    value: int
    places_seed: int

    @classmethod
    def draw(cls, rng: random.Random, letters: int) -> "Chain":
        names = vocabulary.different(lambda: vocabulary.letters(rng, letters, string.ascii_uppercase), HOPS + 1)
        return cls(tuple(names), rng.randrange(10000, 99999), rng.getrandbits(64))

    @property
    def assignments(self) -> list[str]:
        links = zip(self.names[1:], self.names, strict=False)
        return [f"VAR {self.names[0]} = {self.value}", *(f"VAR {new} = VAR {old} " for new, old in links)]

    def places(self, count: int) -> list[int]:
        """Before which of `count` sentences the assignments stand, in order."""
        return sorted(random.Random(self.places_seed).sample(range(count), HOPS + 1))

    def hide(self, lines: int) -> tuple[str, str, tuple[float, ...]]:
        """The question over so many lines of noise, its answer prefix, and the depths of the assignments in percent."""
        sentences = [NOISE + "\n"] * lines
        if lines <= HOPS + 1:  # too few places: between sentences, then
            sentences = [part + "." if part.strip() else part for line in sentences for part in line.split(".")]
        places = self.places(len(sentences))
        depths = tuple(100 * place / len(sentences) for place in places)
        for place, assignment in reversed(list(zip(places, self.assignments, strict=True))):
            sentences.insert(place, assignment)
        context = " ".join(sentences).replace(". \n", ".\n")
        prefix = _PREFIX.format(count=len(self.names), value=self.value)
        return _ASK.format(context=context, value=self.value), prefix, depths


def recipes(setting: Setting) -> Callable[[random.Random, int], Recipe]:
    """The worked example is the same in all samples but for the names of its variables."""
    example = Chain.draw(random.Random(f"{setting.seed}/vt/example"), letters=3)
    room = min(_EXAMPLE_TOKENS, setting.length // 4)
    lines = _EXAMPLE_LINES[0]
    for more in _EXAMPLE_LINES:
        if len(setting.tokenizer.encode(_worked(example, more))) + _EXAMPLE_ANSWER > room:
            break
        lines = more
    return lambda rng, index: VariableRecipe(rng, example, lines)


def _worked(example: Chain, lines: int) -> str:
    prompt, prefix, _ = example.hide(lines)
    return f"{prompt}{prefix} {' '.join(example.names)}\n\n"


class VariableRecipe:
    """A unit of filler is a line of noise."""

    def __init__(self, rng: random.Random, example: Chain, example_lines: int):
        self.smallest = 1
        self.largest = UNLIMITED
        self.chain = Chain.draw(rng, letters=5)
        while self.chain.value == example.value:
            self.chain = Chain.draw(rng, letters=5)
        self.example = dataclasses.replace(example, names=Chain.draw(rng, letters=3).names)
        self._example_text = _worked(self.example, example_lines)

    def draft(self, size: int) -> Draft:
        prompt, prefix, depths = self.chain.hide(size)
        return Draft(f"{self._example_text}\n\n{prompt}", prefix, self.chain.names, depths)
