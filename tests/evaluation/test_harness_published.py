"""Tasks as lm-eval ships them, on local rows of their formats: what is answered is what its own backend answers."""

import json
from pathlib import Path

import lm_eval
import nltk
import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from anchorjax.inference import generation, scoring
from tests.evaluation import harness as making

SHIPPED = Path(lm_eval.__file__).parent / "tasks"
CONTEXT = 4608
TOPICS = ["the tide", "a lens", "old maps", "the fifth moon", "iron", "a small bell"]


def hellaswag(i: int) -> dict:
    endings = [f"puts {topic} away. [substeps] then rests." for topic in TOPICS[i % 3 : i % 3 + 4]]
    context = {"ctx_a": f"A man looks at {TOPICS[i]}.", "ctx_b": "he slowly"}
    return context | {"activity_label": "Looking [title] closely", "endings": endings, "label": str(i % 4)}


def mmlu(i: int) -> dict:
    return {"question": f" What is {TOPICS[i]} for? ", "choices": TOPICS[i % 3 : i % 3 + 4], "answer": i % 4}


def longbench(i: int) -> dict:
    context = " ".join(f"Of {topic} it is said that number {7 * i + n} was seen." for n, topic in enumerate(TOPICS))
    answers = {"answers": [TOPICS[i], "e"], "all_classes": [*TOPICS, "e", "t"]}
    return {"context": context, "question": f"What was number {i}?", "length": 99, "language": "en"} | answers


# The task's file, and its rows by split; RULER makes its own.
TASKS = {
    "hellaswag/hellaswag": {"train": hellaswag, "validation": hellaswag},
    "mmlu/default/mmlu_anatomy": {"dev": mmlu, "test": mmlu},
    "longbench/hotpotqa": {"test": longbench},
    "longbench/trec": {"test": longbench},
    "longbench/lcc": {"test": longbench},
    "ruler/niah_single_1": {},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return making.pair("llama untied", tmp_path_factory.mktemp("model"), True, context=CONTEXT, batch_size=1)


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    making.compile_little(monkeypatch)
    for module in (scoring, generation):
        monkeypatch.setattr(module, "bucket", lambda size: 1024 if size <= 1024 else CONTEXT)


def write_task(file: str, splits: dict, directory: Path) -> None:
    """lm-eval's own, but for where its rows come from."""
    task = {"include": str(SHIPPED / f"{file}.yaml"), "task": "local"}
    for split, row in splits.items():
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(6)))
    if splits:
        files = {split: str(directory / f"{split}.jsonl") for split in splits}
        rows = {"data_files": files, "cache_dir": str(directory / "cache")}
        task |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": rows}
    (directory / "local.yaml").write_text(json.dumps(task))  # JSON is YAML


@pytest.mark.parametrize("file", TASKS)
def test_answers_are_theirs(pair, file, tmp_path, monkeypatch):
    """Each choice's likelihood, each text, and the scores that they come to."""
    monkeypatch.setattr(nltk.data, "find", lambda name: None)  # or RULER downloads rules that this task has no use for
    write_task(file, TASKS[file], tmp_path)
    made = {"tokenizer": str(pair.directory), "max_seq_lengths": [4096]}
    manager = TaskManager(include_path=tmp_path, include_defaults=False, metadata=made)
    asked = {"tasks": ["local"], "task_manager": manager, "bootstrap_iters": 0, "limit": 2 if not TASKS[file] else None}
    if "mmlu" in file:
        asked["num_fewshot"] = 5
    theirs, ours = (simple_evaluate(model=model, **asked) for model in (pair.theirs, pair.ours(tmp_path / "out")))
    answers = [[sample["filtered_resps"] for sample in found["samples"]["local"]] for found in (theirs, ours)]
    assert len(answers[0]) == (6 if TASKS[file] else 2)
    if isinstance(answers[0][0][0], str):
        assert answers[1] == answers[0] and all(text for [text] in answers[0])
    else:
        for expected, found in zip(*answers, strict=True):
            assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-5)
            assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert ours["results"]["local"] == pytest.approx(theirs["results"]["local"], nan_ok=True)
