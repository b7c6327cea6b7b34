"""vt by executing the assignments, cwe and fwe by counting."""

import collections
import random
import re

import pytest

from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.evaluation.tasks import ruler
from anchorjax.evaluation.tasks.ruler import vocabulary
from anchorjax.evaluation.tasks.ruler.variables import Chain, VariableRecipe
from tests.evaluation import bpe

BYTES = tokenizer_lib.load("bytes")
BPE = bpe.tokenizer()


def variables_with(text: str, value: str) -> list[str]:
    """Names that hold the value after all assignments ran from left to right."""
    held: dict[str, str] = {}
    for new, number, old in re.findall(r"VAR ([A-Z]+) = (?:(\d+)|VAR ([A-Z]+))", text):
        assert new not in held, "assigned twice"
        held[new] = number or held[old]
    return [name for name, number in held.items() if number == value]


@pytest.mark.parametrize(
    ("tokenizer", "length"), [(BPE, 600), (BPE, 1024), (BPE, 4096), (BYTES, 2048), (BYTES, 100_000)]
)
def test_chains_hold_the_value(tokenizer, length):
    for sample in ruler.make("vt", tokenizer, length, 20):
        example, question = sample.prompt.split("\n\n\n\n")
        value = re.search(r"the value (\d{5}) in the text above\.$", question)[1]
        assert variables_with(question, value) == list(sample.references)
        assert all(re.fullmatch("[A-Z]{5}", name) for name in sample.references)
        assert f"5 variables are assigned the value {value}, they are: " in sample.answer_prefix
        # The example is right too, and says nothing of the question.
        text, answer = example.split("they are: ")
        other = re.search(r"assigned the value (\d{5})", text)[1]
        assert other != value and variables_with(text, other) == answer.split()
        assert all(re.fullmatch("[A-Z]{3}", name) for name in answer.split())
        assert sorted(sample.depths) == list(sample.depths) and len(sample.depths) == 5
        assert 0 <= sample.depths[0] and sample.depths[-1] < 100


def test_a_question_has_another_value_than_its_example():
    example = Chain.draw(random.Random(0), letters=5)
    assert VariableRecipe(random.Random(0), example, 1).chain.value != example.value


def test_example_is_that_of_ruler_from_2048_tokens_on():
    """As many lines, in steps of five, as 500 tokens with the answer take; the same in all samples but for names."""
    sizes = []
    for length in (600, 1024, 2048, 4096, 131_072):
        examples = [sample.prompt.split("\n\n\n\n")[0] for sample in ruler.make("vt", BPE, length, 2)]
        assert examples[0] != examples[1]
        assert len({re.sub(r"\b[A-Z]{3}\b", "", example) for example in examples}) == 1
        sizes.append((len(BPE.encode(examples[0])), examples[0].count("Here we go.")))
    assert sizes[2][1] == sizes[3][1] == sizes[4][1]
    assert 360 < sizes[2][0] <= 470 and sizes[2][1] % 5 == 0
    assert sizes[0][1] <= sizes[1][1] < sizes[2][1]


def listed(text: str) -> list[str]:
    """Words of a numbered list; the numbers must be 1, 2, 3, ..."""
    entries = re.findall(r"(\d+)\. (.*?)(?= \d+\. |$)", text)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    return [word for _, word in entries]


@pytest.mark.parametrize(("length", "repeats"), [(2048, (6, 1)), (4095, (6, 1)), (5000, (30, 3)), (16_384, (30, 3))])
def test_common_words_are_counted_exactly(length, repeats):
    for sample in ruler.make("cwe", BPE, length, 5):
        example, question = sample.prompt.split("\nBelow is")
        example_lists = re.search(r"often\.\n(.*)\nQuestion.*in the list are:(.*)", example, re.DOTALL)
        counts = collections.Counter(listed(example_lists[1]))
        assert sorted(listed(example_lists[2])) == sorted(word for word, _ in counts.most_common(10))
        assert sorted(counts.values()) == ([1] * 10 + [3] * 10 if length < 4096 else [3] * 30 + [10] * 10)
        counts = collections.Counter(listed(question.split("often.\n")[1].split("\nQuestion")[0]))
        assert sorted(word for word, _ in counts.most_common(10)) == sorted(sample.references)
        assert sorted(counts.values()) == [repeats[1]] * (len(counts) - 10) + [repeats[0]] * 10
        assert len(counts) > 20
        assert set(counts) <= set(vocabulary.all_words()) and sample.material == ""


def test_shorter_lists_where_those_of_ruler_have_no_room():
    """303 entries and 190 of the example take 7,400 bytes."""
    for length, material, most in [(4095, "", 6), (4096, "shorter lists than RULER's", 6), (9000, "", 30)]:
        sample = ruler.make("cwe", BYTES, length, 1)[0]
        question = sample.prompt.split("\nBelow is")[1].split("often.\n")[1].split("\nQuestion")[0]
        assert collections.Counter(listed(question)).most_common(1)[0][1] == most
        assert sample.material == material


def test_common_words_past_the_vocabulary_of_ruler():
    """At a million tokens; a further word never holds a common one, which would count as it in an answer."""
    sample = ruler.make("cwe", BYTES, 1 << 20, 1)[0]
    counts = collections.Counter(
        listed(sample.prompt.split("\nBelow is")[1].split("often.\n")[1].split("\nQuestion")[0])
    )
    assert len(counts) > len(vocabulary.all_words()) == 8166
    assert sorted(set(counts.values())) == [3, 30]
    further = set(counts) - set(vocabulary.all_words())
    assert set(vocabulary.all_words()) <= set(counts)
    assert not [word for word in further for common in sample.references if common in word]
    assert "not RULER's" in sample.material


@pytest.mark.parametrize(("tokenizer", "length"), [(BPE, 512), (BPE, 700), (BPE, 4096), (BYTES, 600), (BYTES, 131_072)])
def test_frequent_words_are_the_three_behind_the_dots(tokenizer, length):
    texts = set()
    for sample in ruler.make("fwe", tokenizer, length, 10):
        text = sample.prompt.split("coded words. ", 1)[1].split("\nQuestion")[0].split()
        ranked = collections.Counter(text).most_common()
        assert ranked[0][0] == "..."
        assert [word for word, _ in ranked[1:4]] == list(sample.references)
        counts = [count for _, count in ranked] + [0]
        assert counts[1] > counts[2] > counts[3] > counts[4]
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked[1:])
        texts.add(tuple(text))
    assert len(texts) == 10


def test_word_lists_of_ruler():
    assert [len(vocabulary.words(kind)) for kind in ("adjective", "noun")] == [910, 6782]
