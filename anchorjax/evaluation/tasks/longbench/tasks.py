"""The published tasks: tokens of answers as in THUDM/LongBench's config/dataset2maxlen.json, metrics as in eval.py."""

import dataclasses
from typing import Literal

from anchorjax.evaluation.tasks.longbench.prompts import PROMPTS

Category = Literal["single_doc", "multi_doc", "summarization", "few_shot", "synthetic", "code"]
Language = Literal["en", "zh", "code"]
_EVEN_SUFFIX = "_e"


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of LongBench.

    Attributes:
      name: of its file, without .jsonl; one of LongBench-E ends with "_e".
      metric: a name of `metrics.METRICS`.
      prompt: with {context} and, mostly, {input}.
      ends_with_line: an answer ends at its first newline, which may not be its first token.
    """

    name: str
    category: Category
    language: Language
    max_new_tokens: int
    metric: str
    prompt: str = dataclasses.field(repr=False)
    ends_with_line: bool = False

    @property
    def is_even(self) -> bool:
        """Whether it is one of LongBench-E, whose samples are spread evenly over lengths."""
        return self.name.endswith(_EVEN_SUFFIX)

    @property
    def takes_template(self) -> bool:
        """Tasks that give examples, or code to go on with, are not put into a chat template."""
        return self.category not in ("few_shot", "code")

    @property
    def answers_in_a_line(self) -> bool:
        """Behind the first line of an answer, models go on with examples of their own."""
        return self.category == "few_shot"


def _table(*entries: tuple) -> dict[str, Task]:
    return {
        name: Task(name, category, language, max_new_tokens, metric, PROMPTS[name], name == "samsum")
        for name, category, language, max_new_tokens, metric in entries
    }


_PUBLISHED = _table(
    ("narrativeqa", "single_doc", "en", 128, "qa_f1"),
    ("qasper", "single_doc", "en", 128, "qa_f1"),
    ("multifieldqa_en", "single_doc", "en", 64, "qa_f1"),
    ("multifieldqa_zh", "single_doc", "zh", 64, "qa_f1_zh"),
    ("hotpotqa", "multi_doc", "en", 32, "qa_f1"),
    ("2wikimqa", "multi_doc", "en", 32, "qa_f1"),
    ("musique", "multi_doc", "en", 32, "qa_f1"),
    ("dureader", "multi_doc", "zh", 128, "rouge_l_zh"),
    ("gov_report", "summarization", "en", 512, "rouge_l"),
    ("qmsum", "summarization", "en", 512, "rouge_l"),
    ("multi_news", "summarization", "en", 512, "rouge_l"),
    ("vcsum", "summarization", "zh", 512, "rouge_l_zh"),
    ("trec", "few_shot", "en", 64, "classification"),
    ("triviaqa", "few_shot", "en", 32, "qa_f1"),
    ("samsum", "few_shot", "en", 128, "rouge_l"),
    ("lsht", "few_shot", "zh", 64, "classification"),
    ("passage_count", "synthetic", "en", 32, "count"),
    ("passage_retrieval_en", "synthetic", "en", 32, "retrieval"),
    ("passage_retrieval_zh", "synthetic", "zh", 32, "retrieval_zh"),
    ("lcc", "code", "code", 64, "code_similarity"),
    ("repobench-p", "code", "code", 64, "code_similarity"),
)
_NOT_EVEN = ("narrativeqa", "musique", "qmsum")  # English and code are in LongBench-E but for these
_EVEN = [task for task in _PUBLISHED.values() if task.language != "zh" and task.name not in _NOT_EVEN]

PUBLISHED = tuple(_PUBLISHED)
EVEN = tuple(task.name + _EVEN_SUFFIX for task in _EVEN)
TASKS: dict[str, Task] = _PUBLISHED | {
    name: dataclasses.replace(task, name=name) for name, task in zip(EVEN, _EVEN, strict=True)
}
