"""The metrics by hand, and against lm-eval's copy of LongBench's own on drawn texts."""

import difflib
import importlib.util
import random
import sys
import warnings
from pathlib import Path

import pytest

from anchorjax.errors import EvaluationError
from anchorjax.evaluation.tasks.longbench import check_libraries
from anchorjax.evaluation.tasks.longbench.metrics import METRICS

CLASSES = ("City", "Location", "Other location", "Other", "Location of a City", "Food")
THEIRS = {
    "qa_f1": "qa_f1_score",
    "qa_f1_zh": "qa_f1_zh_score",
    "rouge_l": "rouge_score",
    "rouge_l_zh": "rouge_zh_score",
    "classification": "classification_score",
    "count": "count_score",
    "retrieval": "retrieval_score",
    "retrieval_zh": "retrieval_zh_score",
    "code_similarity": "code_sim_score",
}
WORDS = ["The", "a", "cat", "An", "dog's", "sat;", "mat.", "Sat", "the,", "on", "3", "12", "it.", "it,", "CAT"]
CHINESE = "北京是中国的首都。，、 我们在会议上讨论了ABC计划和3个问题「总结」"
CODE = ("x = 1", "    return x", "# a comment", "```python", "// note", "for i in range(10):", "", "return y + x")


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "expected"),
    [
        ("qa_f1", "The cat, sat!", "a cat", 2 * (1 / 2) * 1 / (1 / 2 + 1)),
        ("qa_f1", "Paris Paris", "paris", 2 / 3),
        ("qa_f1", "the", "a", 0.0),  # articles are no words
        ("qa_f1", "anthem", "them", 0.0),
        ("qa_f1", "cat—a—dog", "cat— —dog", 1.0),
        ("qa_f1_zh", "北京", "北京。", 1.0),
        ("qa_f1_zh", "喜欢北京", "北京", 2 / 3),
        ("qa_f1_zh", "。", "。", 0.0),
        ("count", "There are 7, or 8.", "7", 1 / 2),
        ("count", "17", "7", 0.0),
        ("count", "seven", "7", 0.0),
        ("retrieval", "Paragraph 12", "Paragraph 12", 1.0),
        ("retrieval", "12 or 13 or 14", "Paragraph 13", 1 / 3),
        ("retrieval_zh", "段落3", "段落3", 1.0),
        ("code_similarity", "\n\n# why\nreturn x\nmore", "return x", 1.0),
        ("code_similarity", "abcd", "bcde", 0.75),
        ("code_similarity", "abc", "bcde", 0.57),  # 4 / 7 in whole percent
        ("code_similarity", "# only\n// talk", "x", 0.0),
        ("code_similarity", "`", "", 1.0),
        ("rouge_l", "a b c d", "a x c", 4 / 7),
        ("rouge_l", "Cat", "cat", 0.0),
        ("rouge_l", "b. a", "a b", 1.0),  # the union over sentences
        ("rouge_l", "...", "a", 0.0),
        ("rouge_l", "", "a", 0.0),
        ("rouge_l_zh", "喜欢北京", "北京", 2 / 3),
    ],
)
def test_by_hand(metric, prediction, reference, expected):
    assert METRICS[metric](prediction, reference) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("It is a City.", "City", 1.0),
        ("City or Food", "City", 1 / 2),
        ("Food", "City", 0.0),
        ("city", "City", 0.0),
        ("Other location", "Other location", 1.0),  # "Other" is part of the right name
        ("Location of a City, Food", "Location of a City", 1 / 3),  # "City" goes, and "Location" behind it is spared
        ("Other location", "Other", 1 / 2),
    ],
)
def test_classes_by_hand(prediction, reference, expected):
    assert METRICS["classification"](prediction, reference, CLASSES) == expected


@pytest.fixture(scope="module")
def theirs():
    """lm-eval's file alone: the package would import much more."""
    package = importlib.util.find_spec("lm_eval").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("theirs", Path(package) / "tasks/longbench/metrics.py")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(action="ignore"):  # of slowness, by whoever imports fuzzywuzzy first
        spec.loader.exec_module(module)
    assert module.fuzz.SequenceMatcher is difflib.SequenceMatcher, "python-Levenshtein gives fuzzywuzzy other numbers"
    return module


def drawn(metric: str, rng: random.Random) -> str:
    if metric.endswith("_zh"):
        return "段落" * (metric == "retrieval_zh") + "".join(rng.choices(CHINESE + "12", k=rng.randint(0, 24)))
    if metric == "code_similarity":
        return "\n".join(rng.choices(CODE, k=rng.randint(1, 4)))
    if metric == "classification":
        return " ".join(rng.choices((*CLASSES, "or"), k=rng.randint(0, 4)))
    return " ".join(rng.choices(WORDS, k=rng.randint(0, 20)))


def reference(metric: str, rng: random.Random) -> str:
    fixed = {
        "classification": rng.choice(CLASSES),
        "count": rng.choice(("3", "12")),
        "retrieval": f"Paragraph {rng.choice((3, 12))}",
        "retrieval_zh": f"段落{rng.choice((1, 2, 12))}",
        "code_similarity": rng.choice(CODE),
    }
    return fixed.get(metric) or drawn(metric, rng)


@pytest.mark.parametrize("metric", METRICS)
def test_drawn_texts_score_as_in_lm_eval(metric, theirs):
    rng, values = random.Random(metric), []
    classes = {"all_classes": CLASSES} if metric == "classification" else {}
    for _ in range(150):
        texts = drawn(metric, rng), reference(metric, rng)
        if metric == "code_similarity" and any(not line.strip() for line in texts[0].split("\n")):
            continue  # LongBench passes over empty lines in front alone, lm-eval over all
        values.append(METRICS[metric](*texts, *classes.values()))
        assert values[-1] == pytest.approx(getattr(theirs, THEIRS[metric])(*texts, **classes), abs=1e-12), texts
    assert len(set(values)) > 3


def test_a_line_that_is_empty_is_code_as_in_longbench():
    assert METRICS["code_similarity"]("# talk\n\nreturn x", "return x") == 0.0


def test_rouge_of_a_sentence_deeper_than_the_recursion_limit(theirs):
    """One word in common, in front of texts that have no other: the last place where it is looked for."""
    prediction, expected = (" ".join(["same", *(f"{side}{i}" for i in range(699))]) for side in "ab")
    limit = sys.getrecursionlimit()
    assert theirs.rouge_score(prediction, expected) == 0.0
    assert METRICS["rouge_l"](prediction, expected) == pytest.approx(1 / 700, abs=1e-7)
    assert sys.getrecursionlimit() == limit


def test_a_missing_library_is_named(monkeypatch):
    check_libraries(METRICS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_libraries(["qa_f1", "classification", "count", "retrieval", "retrieval_zh", "code_similarity"])
    for metric, library in (("rouge_l", "rouge"), ("rouge_l_zh", "rouge"), ("qa_f1_zh", "jieba")):
        with pytest.raises(EvaluationError, match=f"{library} is missing: python -m pip install .*eval"):
            check_libraries([metric])
