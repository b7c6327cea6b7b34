"""The 13 tasks, and the samples of one of them at one length."""

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from anchorjax.data.text.chat import ChatTemplate, frame
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import EvaluationError
from anchorjax.evaluation.tasks.ruler import needles, questions, sizing, variables, words
from anchorjax.evaluation.tasks.ruler.sample import Draft, Recipe, Sample, Setting

_AMPLE = 16  # with so many times the tokens that the first sample needs, the others are not looked at
_ESSAYS = "essays; RULER's are not shipped, and without essays=PATH they are novels of Jane Austen"


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of RULER.

    Attributes:
      max_new_tokens: tokens that are generated after the answer prefix.
      metric: "all" counts the share of references that are found in the answer, "part" whether any is.
      recipes: makes, for a setting, what makes the recipe of a sample from its random numbers and index.
      material: what is read beside what ships; nothing for most.
    """

    max_new_tokens: int
    metric: Literal["all", "part"]
    recipes: Callable[[Setting], Callable[[random.Random, int], Recipe]] = dataclasses.field(repr=False)
    material: str = ""


def _needle_task(name: str) -> Task:
    material = _ESSAYS if needles.KINDS[name].haystack == "essays" else ""
    return Task(128, "all", needles.RECIPES[name], material)


TASKS: dict[str, Task] = {
    **{name: _needle_task(name) for name in needles.KINDS},
    "vt": Task(30, "all", variables.recipes),
    "cwe": Task(120, "all", words.common_recipes),
    "fwe": Task(50, "all", words.frequent_recipes),
    "qa_1": Task(32, "part", functools.partial(questions.recipes, "squad"), "squad=PATH: dev-v2.0.json"),
    "qa_2": Task(
        32, "part", functools.partial(questions.recipes, "hotpot"), "hotpot=PATH: hotpot_dev_distractor_v1.json"
    ),
}


def make(
    task: str,
    tokenizer: Tokenizer,
    length: int,
    num_samples: int = 500,
    seed: int = 42,
    *,
    chat: ChatTemplate | None = None,
    essays: Path | None = None,
    squad: Path | None = None,
    hotpot: Path | None = None,
) -> "Samples":
    """The samples of a task; each is made when it is asked for.

    Args:
      task: a name of `TASKS`.
      length: tokens of prompt, answer prefix and generated answer together, BOS included.
        `sizing.slack` says how many of them a sample may leave free.
      chat: puts the prompt into the user's turn and the answer prefix behind the assistant's header; without it, the
        prompt is plain text. The tokenizer must then be that of a Hugging Face directory.
      essays: a text file, a JSON file with the text under "text", or a folder of them, for tasks in essays.
      squad, hotpot: the files of qa_1 and qa_2.

    Raises:
      EvaluationError: no such task, a file that is missing or cannot be read, or a length in which one of the samples
        has no room; its message says which length has.
    """
    if task not in TASKS:
        raise EvaluationError(f"there is no task {task!r} in RULER; allowed: {', '.join(TASKS)}")
    if num_samples < 1:
        raise EvaluationError(f"{task}: num_samples={num_samples} is not allowed: it must be at least 1")
    setting = Setting(tokenizer, length, seed, essays, squad, hotpot)
    entry = TASKS[task]
    return Samples(task, setting, entry.recipes(setting), num_samples, entry.max_new_tokens, chat)


@dataclasses.dataclass(frozen=True)
class _Framed:
    """A draft as the model gets it; its length is its number of tokens."""

    draft: Draft
    prompt: str
    ids_T: np.ndarray

    def __len__(self) -> int:
        return len(self.ids_T)


class Samples(Sequence):
    """Samples of one task at one length: sample i is the same whatever their number is."""

    def __init__(
        self,
        task: str,
        setting: Setting,
        recipes: Callable[[random.Random, int], Recipe],
        num_samples: int,
        max_new_tokens: int,
        chat: ChatTemplate | None,
    ):
        """Raises EvaluationError: a sample has no room even with the least of filler, or bytes with a chat template."""
        if chat and not hasattr(setting.tokenizer, "encode_with_specials"):
            raise EvaluationError(
                f"{task}: a chat template needs the tokenizer of its directory; {setting.tokenizer.name} has no turns"
            )
        self.task = task
        self.setting = setting
        self._recipes = recipes
        self._num_samples = num_samples
        self._max_new_tokens = max_new_tokens
        self._chat = chat
        self._recipe(num_samples - 1)  # there may not be so many questions
        self._check_room()

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.task} has {len(self)} samples, and no sample {index}")
        return self._sample(index % len(self))

    def references(self) -> list[tuple[str, ...]]:
        """Those of all samples, which takes no sizing: for scoring answers that were made before."""
        recipes = map(self._recipe, range(len(self)))
        return [recipe.draft(recipe.smallest).references for recipe in recipes]

    def _sample(self, index: int) -> Sample:
        length, recipe = self.setting.length, self._recipe(index)
        try:
            framed = sizing.fit(
                lambda size: self._framed(recipe.draft(size)),
                recipe.smallest,
                recipe.largest,
                budget=length - self._max_new_tokens,
                slack=sizing.slack(length),
            )
        except sizing.TooShort as error:
            self._refuse(error.needed + self._max_new_tokens)
        draft = framed.draft
        return Sample(
            task=self.task,
            index=index,
            length=length,
            prompt=framed.prompt,
            answer_prefix=draft.answer_prefix,
            references=draft.references,
            depths=draft.depths,
            material=draft.material,
            max_new_tokens=self._max_new_tokens,
            ids_T=framed.ids_T,
        )

    def _recipe(self, index: int) -> Recipe:
        """All that is random comes from here, and from nothing but the task, the length, the seed and the index."""
        setting = self.setting
        return self._recipes(random.Random(f"{setting.seed}/{self.task}/{setting.length}/{index}"), index)

    def _framed(self, draft: Draft) -> _Framed:
        return _Framed(draft, *frame(draft.prompt, draft.answer_prefix, self.setting.tokenizer, self._chat))

    def _check_room(self) -> None:
        """All samples at their smallest, before the first is asked for: a run is not to end at sample 300."""
        smallest = self._smallest_tokens(0)
        if _AMPLE * smallest > self.setting.length:
            smallest = max(map(self._smallest_tokens, range(len(self))))
        if smallest > self.setting.length:
            self._refuse(smallest)

    def _smallest_tokens(self, index: int) -> int:
        recipe = self._recipe(index)
        return len(self._framed(recipe.draft(recipe.smallest))) + self._max_new_tokens

    def _refuse(self, needed: int) -> NoReturn:
        raise EvaluationError(
            f"{self.task} has no room in {self.setting.length} tokens with this tokenizer: "
            f"it needs at least {needed}, {self._max_new_tokens} of them for the answer"
        )
