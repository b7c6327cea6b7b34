"""Needles are in the haystack, where they are said to be, and nothing else answers the question."""

import collections
import random
import re

import pytest

from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.evaluation.tasks import ruler
from anchorjax.evaluation.tasks.ruler import needles
from anchorjax.evaluation.tasks.ruler.haystack import NOISE, open_essays
from anchorjax.evaluation.tasks.ruler.needles import DEPTHS, KINDS, NeedleRecipe
from tests.evaluation import bpe

BYTES = tokenizer_lib.load("bytes")
FOUND = re.compile(r"One of the special magic (?:numbers|uuids) for (.+?) is: ([0-9a-f-]+)\.")


def context_of(prompt: str) -> str:
    return prompt.split("afterwards.\n", 1)[1].rsplit("\nWhat ", 1)[0]


def keys_of(answer_prefix: str) -> list[str]:
    return re.split(", (?:and )?", re.search(" for (.*) mentioned", answer_prefix)[1])


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize(
    ("name", "length"),
    [("bpe", 512), *((name, length) for name in ("bpe", "bytes") for length in (1024, 4096, 16_384, 131_072))],
)
def test_every_reference_lies_at_its_depth(task, length, name):
    tokenizer = BYTES if name == "bytes" else bpe.tokenizer()
    for sample in ruler.make(task, tokenizer, length, 2 if length > 16_384 else 8):
        context = context_of(sample.prompt)
        assert len(sample.references) == len(sample.depths) == KINDS[task].values * KINDS[task].queries
        for reference, depth in zip(sample.references, sample.depths, strict=True):
            assert sample.prompt.count(reference) == 1
            start = context.rindex("One of the", 0, context.index(reference))
            if KINDS[task].haystack == "essays":
                assert words_before(context, start) == words_of_sentences(context, depth)
            else:
                assert depth == pytest.approx(100 * context[:start].count("\n") / context.count("\n"))
        # What the model sees is the whole of it.
        assert tokenizer.decode(sample.ids_T[1:]) == sample.prompt + sample.answer_prefix


def words_before(context: str, start: int) -> int:
    """Words of the essays that stand before that character."""
    return len(FOUND.sub(" ", context[:start]).split())


def words_of_sentences(context: str, depth: float) -> int:
    """Words of so many percent of the sentences."""
    total = len(FOUND.sub(" ", context).split())
    ends = [0, *(int(end) for end in open_essays(None).ends_S if end < total), total]
    assert depth in DEPTHS
    return ends[int((len(ends) - 1) * (depth / 100))]


@pytest.mark.parametrize("task", ["niah_single_2", "niah_multivalue"])
def test_depths_of_essays_are_uniform_over_forty_points(task):
    assert len(DEPTHS) == 40 and DEPTHS[:4] == (0, 3, 5, 8) and DEPTHS[-2:] == (97, 100)
    essays = open_essays(None)
    counts = collections.Counter()
    for seed in range(4000 // KINDS[task].values):
        recipe = NeedleRecipe(KINDS[task], random.Random(seed), essays)
        assert len(set(recipe.depths)) == KINDS[task].values
        counts.update(recipe.draft(1).depths)
    assert set(counts) == set(DEPTHS)
    chi_squared = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi_squared < 73  # 39 degrees of freedom: 1 in 1000


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_2"])
def test_depths_of_lines_are_uniform(task):
    counts = collections.Counter(
        NeedleRecipe(KINDS[task], random.Random(seed), None).draft(20).depths[0] for seed in range(2000)
    )
    assert sorted(counts) == [5.0 * i for i in range(20)]
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 44  # 19 degrees of freedom


@pytest.mark.parametrize("task", KINDS)
def test_keys_and_values_differ_and_only_asked_ones_answer(task):
    kind = KINDS[task]
    for sample in ruler.make(task, BYTES, 8192, 30):
        pairs = FOUND.findall(context_of(sample.prompt))
        asked = keys_of(sample.answer_prefix)
        assert len(set(asked)) == kind.queries
        assert [pair for pair in pairs if any(key in pair[0] for key in asked)] == [
            pair for pair in pairs if pair[1] in sample.references
        ]
        values = [value for _, value in pairs]
        assert len(set(values)) == len(values)
        by_key = collections.Counter(key for key, _ in pairs)
        assert set(by_key.values()) == {kind.values}
        if kind.haystack == "essays":
            assert len(by_key) == kind.keys
        elif kind.haystack == "needles":
            assert len(by_key) > 40


@pytest.mark.parametrize("task", ["niah_multiquery", "niah_multivalue"])
def test_references_come_in_the_order_of_the_question_and_needles_in_any(task):
    orders = set()
    for sample in ruler.make(task, BYTES, 4096, 40):
        if task == "niah_multiquery":
            value_of = dict(FOUND.findall(sample.prompt))
            assert sample.references == tuple(value_of[key] for key in keys_of(sample.answer_prefix))
        orders.add(tuple(sorted(range(4), key=lambda i: sample.prompt.index(sample.references[i]))))
    assert len(orders) > 15  # of 24


def test_what_is_drawn_again(monkeypatch):
    """Each of twelve words, of which some contain another, comes up many times."""
    pool = [f"{word}{end}" for word in ("a-cat", "a-dog", "a-cow", "an-ox") for end in ("", "s", "-s")]
    monkeypatch.setitem(needles._DRAW, "words", lambda rng: rng.choice(pool))
    for seed in range(50):
        recipe = NeedleRecipe(KINDS["niah_multikey_2"], random.Random(seed), None)
        found = FOUND.findall(recipe.draft(60).prompt)
        assert len(found) == 61 and [pair for pair in found if recipe.asked[0] in pair[0]] == [
            (recipe.asked[0], recipe.references[0])
        ]
        recipe = NeedleRecipe(KINDS["niah_multiquery"], random.Random(seed), open_essays(None))
        assert len(set(recipe.asked)) == 4


def test_haystacks():
    noise = context_of(ruler.make("niah_single_1", BYTES, 2048, 1)[0].prompt).split("\n")
    assert {line for line in noise if not FOUND.fullmatch(line)} == {NOISE} and len(noise) > 10
    others = context_of(ruler.make("niah_multikey_3", BYTES, 4096, 1)[0].prompt).split("\n")
    assert all(FOUND.fullmatch(line) for line in others)
    uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert all(re.fullmatch(uuid, part) for line in others for part in FOUND.fullmatch(line).groups())


def test_essays_that_are_too_short_repeat_themselves(tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("One two three.  Four five.\nSix")
    for sample in ruler.make("niah_single_2", BYTES, 2048, 20, essays=file):
        before = context_of(sample.prompt).split("One of the")[0].split()
        total = len(FOUND.sub(" ", context_of(sample.prompt)).split())
        assert abs(100 * len(before) / total - sample.depths[0]) < 2
        assert not before or before[-1] in ("three.", "five.", "Six") or sample.depths == (100,)
    words = FOUND.sub(" ", context_of(sample.prompt)).split()
    assert words == (["One", "two", "three.", "Four", "five.", "Six"] * len(words))[: len(words)] and len(words) > 200
    assert sample.material == "essays of short.txt"
