"""The prompts of lm-eval's RULER, for the same needles: made once with its own code (see "provenance").

Where lm-eval differs from NVIDIA/RULER, its text is put right here: "assgined", and answer prefixes without white space
at their ends.
"""

import json
import random
import re
from pathlib import Path

import pytest

from anchorjax.evaluation.tasks.ruler import TASKS, needles, questions, variables, words
from anchorjax.evaluation.tasks.ruler.haystack import NOISE, Essays
from anchorjax.evaluation.tasks.ruler.needles import KINDS, NEEDLE, NeedleRecipe

THEIRS = json.loads((Path(__file__).parent / "fixtures" / "lm_eval_ruler.json").read_text())
ESSAYS = Essays.of("a text", THEIRS["essay"])


def right(text: str) -> str:
    return text.replace("assgined", "assigned")


@pytest.mark.parametrize("theirs", THEIRS["needles"], ids=lambda case: f"{case['task']}-{case['size']}")
def test_needles(theirs):
    kind, size = KINDS[theirs["task"]], theirs["size"]
    essays = ESSAYS if kind.haystack == "essays" else None
    # Percent of the sentences, or places among the lines; a little more, so that none is lost to rounding.
    depths = theirs["where"] if essays else [100 * (place + 0.01) / size for place in theirs["where"]]
    recipe = NeedleRecipe(kind, random.Random(0), essays, tuple(depths))
    recipe._by_words = False
    recipe.needles = [NEEDLE.format(kind=kind.value, key=key, value=value) for key, value in theirs["in_text"]]
    recipe.values = [value for _, value in theirs["in_text"]]
    recipe.asked, recipe.references = theirs["asked"], tuple(theirs["references"])
    others = zip(theirs["others"][::2], theirs["others"][1::2], strict=True)
    recipe._distractors = [NEEDLE.format(kind=kind.value, key=key, value=value) for key, value in others]
    ours = recipe.draft(size)
    assert ours.prompt == theirs["prompt"]
    assert ours.answer_prefix == " " + theirs["prefix"]


class Placed(variables.Chain):
    def places(self, count):
        return self.places_seed  # a list of them, here


@pytest.mark.parametrize("theirs", THEIRS["vt"], ids=lambda case: str(case["lines"]))
def test_variable_tracking(theirs):
    chain = Placed(tuple(theirs["names"]), theirs["value"], theirs["places"])
    prompt, prefix, _ = chain.hide(theirs["lines"])
    assert prompt + prefix == right(theirs["text"])


def test_variable_tracking_with_its_example():
    theirs = THEIRS["vt_whole"]
    prompt = right(theirs["prompt"])
    example, question = prompt.split("\n\n\n\n")
    values = [int(re.search(r"VAR \w+ = (\d+)", text)[1]) for text in (example, question)]
    lines = [text.count(NOISE) for text in (example, question)]
    names = example.split()[-5:]
    recipe = variables.VariableRecipe(random.Random(0), Placed(tuple(names), values[0], theirs["example_places"]), 1)
    recipe._example_text = variables._worked(Placed(tuple(names), values[0], theirs["example_places"]), lines[0])
    recipe.chain = Placed(tuple(theirs["references"]), values[1], theirs["places"])
    draft = recipe.draft(lines[1])
    assert draft.prompt == prompt
    assert draft.answer_prefix.strip() == right(theirs["prefix"])
    assert draft.references == tuple(theirs["references"])


def test_common_words():
    theirs = THEIRS["cwe"]
    ask, prefix = words._CWE_ASK, words._CWE_PREFIX
    for whole in (theirs["example"], theirs["prompt"]):
        listed = re.search(r"often\.\n(.*)\nQuestion", whole)[1]
        again = words._numbered(re.split(r" ?\d+\. ", listed)[1:])
        answer = words._numbered(re.split(r" ?\d+\. ", whole.split(prefix)[1])[1:])
        assert ask.format(context=again) + prefix + answer == whole
    draft = words.CommonRecipe(random.Random(0), short=True).draft(15)
    assert draft.prompt.count("\nBelow is a numbered list") == 1  # the example ends with one newline, as RULER's does
    counts = [len(re.findall(r"\d+\. ", part)) for part in draft.prompt.split("\nBelow")]
    assert counts[0] - 10 == len(re.findall(r"\d+\. ", theirs["example"])) - 10 == 40
    assert counts[1] == len(re.findall(r"\d+\. ", theirs["prompt"])) == 10 * 6 + 5


def test_frequent_words():
    theirs = THEIRS["fwe"]
    text = theirs["prompt"].split("coded words. ", 1)[1].split("\nQuestion")[0].split()
    recipe = words.FrequentRecipe(random.Random(0), theirs["words"])
    counts = sorted((text.count(word) for word in set(text)), reverse=True)
    assert counts == [count for count in recipe.counts(theirs["size"]) if count]
    assert words._FWE_ASK.format(context=" ".join(text)) + words._FWE_PREFIX == theirs["prompt"]
    assert [text.count(word) for word in theirs["references"]] == counts[1:4]


def test_questions():
    theirs = THEIRS["qa"]
    asked = questions.Question("What is the capital of France?", ("Paris",), (0,), ())
    ours = questions.QuestionRecipe(random.Random(0), asked, tuple(theirs["documents"])).draft(3)
    head, tail = (theirs["prompt"].split(cut)[i] for cut, i in (("Document 1:", 0), ("\n\nAnswer the question", 1)))
    assert ours.prompt.startswith(head) and ours.prompt.endswith(tail)
    documents = [
        re.search(r"Document 1:\n.*(?=\n\nAnswer)", text, re.DOTALL)[0] for text in (ours.prompt, theirs["prompt"])
    ]
    cut = [sorted(re.split(r"(?:\n\n)?Document \d:\n", text)) for text in documents]
    assert cut[0] == cut[1] and len(cut[0]) == 4
    assert ours.answer_prefix == " " + theirs["config"]["answer_prefix"]


def test_answers_have_as_many_tokens():
    kinds = {"qa_1": "qa", "qa_2": "qa"} | dict.fromkeys(needles.KINDS, "niah")
    for name, task in TASKS.items():
        assert task.max_new_tokens == THEIRS["max_new_tokens"][kinds.get(name, name)]
