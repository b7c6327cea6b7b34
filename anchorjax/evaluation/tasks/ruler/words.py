"""cwe and fwe: which words stand most often in a list, and in a coded text."""

import math
import random
import string
from collections.abc import Callable, Sequence

import numpy as np

from anchorjax.evaluation.tasks.ruler import vocabulary
from anchorjax.evaluation.tasks.ruler.sample import UNLIMITED, Draft, Recipe, Setting

COMMON = 10
_CWE_ASK = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
_SHORT = 4096  # tokens; below, RULER has shorter lists
_ROOM = 1.1  # lists differ in tokens, and those of the answer and of a chat template are to be added
_CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"

ALPHA = 2.0  # of the zeta distribution of ranks
_ZETA = math.pi**2 / 6  # zeta(2)
_FWE_ASK = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
    "appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
_FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"


def common_recipes(setting: Setting) -> Callable[[random.Random, int], Recipe]:
    """Lists are shorter below 4096 tokens, as in RULER, and where its 493 entries at least have no room."""
    trial = CommonRecipe(random.Random(f"{setting.seed}/cwe/trial"), short=False)
    tokens = len(setting.tokenizer.encode(trial.draft(trial.smallest).prompt))
    crowded = setting.length < _ROOM * tokens
    material = "shorter lists than RULER's" if crowded and setting.length >= _SHORT else ""
    return lambda rng, index: CommonRecipe(rng, short=crowded or setting.length < _SHORT, material=material)


def frequent_recipes(setting: Setting) -> Callable[[random.Random, int], Recipe]:
    return lambda rng, index: FrequentRecipe(rng, max(setting.length // 50, 5))


class CommonRecipe:
    """A unit of filler is an uncommon word, which stands three times in the list, or once if it is short."""

    def __init__(self, rng: random.Random, short: bool, material: str = ""):
        self.smallest = COMMON + 1
        self.largest = UNLIMITED
        self.material = material
        self.repeats = (6, 1) if short else (30, 3)
        example = rng.sample(vocabulary.all_words(), 20 if short else 40)
        listed = _numbered(_repeated(example, (3, 1) if short else (10, 3), rng.getrandbits(64)))
        answer = _numbered(example[:COMMON])
        self._example_text = f"{_CWE_ASK.format(context=listed)}{_CWE_PREFIX}{answer}\n"
        self._order_seed = rng.getrandbits(64)
        self._rng = random.Random(rng.getrandbits(64))  # draws words, the same however often they are asked for
        self._words: dict[str, None] = {}
        self._extend(COMMON)
        self.common = tuple(self._words)

    def draft(self, size: int) -> Draft:
        self._extend(size)
        listed = _numbered(_repeated(list(self._words)[:size], self.repeats, self._order_seed))
        beyond = size > len(vocabulary.all_words())
        return Draft(
            prompt=self._example_text + _CWE_ASK.format(context=listed),
            answer_prefix=_CWE_PREFIX,
            references=self.common,
            material="words and pairs of words, not RULER's list" if beyond else self.material,
        )

    def _extend(self, size: int) -> None:
        vocabulary_words = vocabulary.all_words()
        while len(self._words) < min(size, len(vocabulary_words)):
            self._words[self._rng.choice(vocabulary_words)] = None
        while len(self._words) < size:
            word = vocabulary.pair(self._rng)
            # A pair with a common word in it would count as that word when it is answered.
            if not any(common in word for common in self.common):
                self._words[word] = None


def _repeated(words: Sequence[str], repeats: tuple[int, int], order_seed: int) -> list[str]:
    """The first ten words `repeats[0]` times and the others `repeats[1]` times, in random order."""
    listed = list(words[:COMMON]) * repeats[0] + list(words[COMMON:]) * repeats[1]
    random.Random(order_seed).shuffle(listed)
    return listed


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, start=1))


class FrequentRecipe:
    """A size of n has n / (zeta(2) k^2) copies of the word of rank k, rounded down; the first rank is dots."""

    smallest = 27  # the first at which rank 4 is there and rank 5 is not
    largest = UNLIMITED

    def __init__(self, rng: random.Random, num_words: int):
        words = vocabulary.different(lambda: vocabulary.letters(rng, 6, string.ascii_lowercase), num_words)
        self.words = ["...", *words[1:]]
        self._order_seed = rng.getrandbits(64)

    def draft(self, size: int) -> Draft:
        counts = self.counts(size)
        while counts[3] == counts[4]:  # the third place is to be beyond doubt, also in short texts
            size -= 1
            counts = self.counts(size)
        text = [word for word, count in zip(self.words, counts, strict=True) for _ in range(count)]
        random.Random(self._order_seed).shuffle(text)
        return Draft(_FWE_ASK.format(context=" ".join(text)), _FWE_PREFIX, tuple(self.words[1:4]))

    def counts(self, size: int) -> np.ndarray:
        """int64 [words]: how often each stands in a text of this size."""
        ranks = np.arange(1, len(self.words) + 1)
        return (size * ranks**-ALPHA / _ZETA).astype(np.int64)
