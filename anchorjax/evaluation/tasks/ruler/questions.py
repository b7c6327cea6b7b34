"""qa_1 and qa_2: a question of SQuAD or HotpotQA, whose documents stand among those of other questions."""

import dataclasses
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anchorjax.data.text import text_file
from anchorjax.errors import EvaluationError
from anchorjax.evaluation.tasks.ruler.sample import Draft, Recipe, Setting

_ASK = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query}"
)
_PREFIX = " Answer:"


@dataclasses.dataclass(frozen=True)
class Question:
    """Documents are indices.

    Attributes:
      answers: any of them is right.
      needed: documents that hold the answer.
      near: documents that stand beside them as long as there is room, before any others.
    """

    query: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    near: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    questions: tuple[Question, ...]
    documents: tuple[str, ...]


def recipes(option: str, setting: Setting) -> Callable[[random.Random, int], Recipe]:
    """Recipes from the set that `option` names: "squad" or "hotpot". Raises EvaluationError if it is not there."""
    path, (title, file, _) = getattr(setting, option), _SETS[option]
    if path is None:
        raise EvaluationError(f"{title} does not come with anchorjax: get {file} and name it with --{option}=PATH")
    questions = _open(Path(path).expanduser(), option)

    def recipe(rng: random.Random, index: int) -> Recipe:
        if index >= len(questions.questions):
            count = len(questions.questions)
            raise EvaluationError(f"{option}={path} has {count} questions, which is too few for {index + 1} samples")
        return QuestionRecipe(rng, questions.questions[index], questions.documents)

    return recipe


@functools.cache
def _open(path: Path, option: str) -> QuestionSet:
    _, file, read = _SETS[option]
    try:
        text, is_marked = text_file.read(path)
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # refuses half a surrogate pair, as a tokenizer would
        found = read(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{option}={path} cannot be read as {file}: {error!r}") from error
    if not found.questions:
        raise EvaluationError(f"{option}={path} holds no question that has an answer")
    text_file.say_marks(f"{option}={path}", is_marked)
    return found


def _squad(content: dict[str, Any]) -> QuestionSet:
    """Questions with an answer; beside its paragraph come the others of the same article."""
    articles = [[paragraph["context"] for paragraph in article["paragraphs"]] for article in content["data"]]
    documents = tuple(sorted({text for texts in articles for text in texts}))
    index = {text: i for i, text in enumerate(documents)}
    questions = []
    for article, texts in zip(content["data"], articles, strict=True):
        for paragraph in article["paragraphs"]:
            own = index[paragraph["context"]]
            near = tuple(dict.fromkeys(index[text] for text in texts if index[text] != own))
            for asked in paragraph["qas"]:
                if not asked["is_impossible"]:
                    answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                    questions.append(Question(asked["question"], answers, (own,), near))
    return QuestionSet(tuple(questions), documents)


def _hotpot(content: list[dict[str, Any]]) -> QuestionSet:
    """All questions; the ten documents of each stay together, those with the supporting facts first."""
    contexts = [{title: f"{title}\n{''.join(sentences)}" for title, sentences in asked["context"]} for asked in content]
    documents = tuple(sorted({text for texts in contexts for text in texts.values()}))
    index = {text: i for i, text in enumerate(documents)}
    questions = []
    for asked, texts in zip(content, contexts, strict=True):
        supporting = {title for title, _ in asked.get("supporting_facts", [])} & set(texts) or set(texts)
        needed = tuple(index[text] for title, text in texts.items() if title in supporting)
        near = tuple(index[text] for title, text in texts.items() if title not in supporting)
        questions.append(Question(asked["question"], (asked["answer"],), needed, near))
    return QuestionSet(tuple(questions), documents)


_SETS = {
    "squad": ("SQuAD 2.0", "dev-v2.0.json", _squad),
    "hotpot": ("HotpotQA", "hotpot_dev_distractor_v1.json", _hotpot),
}


class QuestionRecipe:
    """A unit of filler is a document; there are no more than the set has, whatever the length."""

    def __init__(self, rng: random.Random, question: Question, documents: tuple[str, ...]):
        self.question = question
        self.documents = documents
        self.smallest = len(question.needed)
        self.largest = len(documents)
        self._near = rng.sample(question.near, len(question.near))
        self._others_seed = rng.getrandbits(64)
        self._places_seed = rng.getrandbits(64)

    @functools.cached_property
    def _others(self) -> list[int]:
        own = {*self.question.needed, *self.question.near}
        others = [i for i in range(len(self.documents)) if i not in own]
        random.Random(self._others_seed).shuffle(others)
        return others

    def draft(self, size: int) -> Draft:
        chosen = [*self.question.needed, *self._near]
        if size > len(chosen):  # a set has tens of thousands of others
            chosen += self._others
        chosen = chosen[:size]
        random.Random(self._places_seed).shuffle(chosen)
        context = "\n\n".join(f"Document {i}:\n{self.documents[d]}" for i, d in enumerate(chosen, start=1))
        return Draft(
            prompt=_ASK.format(context=context, query=self.question.query),
            answer_prefix=_PREFIX,
            references=self.question.answers,
            depths=tuple(100 * chosen.index(d) / size for d in self.question.needed),
        )
