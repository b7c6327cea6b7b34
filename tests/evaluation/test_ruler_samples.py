"""Samples: full but never too long, the same in any order and number, framed as asked, refused early."""

import numpy as np
import pytest

from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.data.text.chat import ChatTemplate
from anchorjax.errors import EvaluationError
from anchorjax.evaluation.tasks import ruler
from anchorjax.evaluation.tasks.ruler import sizing
from tests.evaluation import bpe
from tests.evaluation.test_ruler_questions import hotpot, squad

BYTES = tokenizer_lib.load("bytes")
# Tokens of the largest unit of filler, of bytes and of the test's BPE: what a sample may leave free at any length.
UNIT = {
    "niah_single_1": (90, 40),
    "niah_multikey_2": (95, 50),
    "niah_multikey_3": (125, 100),
    "vt": (91, 40),
    "cwe": (90, 60),
    "fwe": (30, 24),
    "qa_1": (240, 120),
    "qa_2": (60, 45),
}
WORD = (30, 16)  # of essays
SHORT = {"vt": (1200, 600), "cwe": (2200, 1400), "qa_1": (600, 512), "qa_2": (600, 512)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    return {"squad": squad(folder, articles=90, paragraphs=20), "hotpot": hotpot(folder, questions=200)}


@pytest.mark.parametrize("chat", [False, True], ids=["base", "chat"])
@pytest.mark.parametrize("task", ruler.TASKS)
def test_length_is_reached_but_never_passed(task, chat, files):
    template = ChatTemplate.open(bpe.directory()) if chat else None
    for column, tokenizer in enumerate([BYTES, bpe.tokenizer()]):
        if chat and tokenizer is BYTES:
            continue
        lengths = [SHORT.get(task, (1024, 512))[column], 1500 if task != "cwe" else 3000, 8192, 32_768]
        for length in lengths:
            for sample in ruler.make(task, tokenizer, length, 3, chat=template, **files):
                free = length - len(sample.ids_T) - sample.max_new_tokens
                assert 0 <= free <= max(sizing.slack(length), UNIT.get(task, WORD)[column])
                assert sample.num_tokens == length - free


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multiquery", "vt", "fwe"])
def test_a_million_tokens_leave_a_thousandth_free(task):
    sample = ruler.make(task, BYTES, 1 << 20, 1)[0]
    assert 0 <= (1 << 20) - sample.num_tokens <= 1024


@pytest.mark.parametrize("task", ruler.TASKS)
def test_sample_is_the_same_whatever_else_is_asked_for(task, files):
    def make(number, **changes):
        return ruler.make(task, BYTES, **({"length": 8192, "num_samples": number, "seed": 1} | changes), **files)

    def same(one, other):
        return one.prompt == other.prompt and one.references == other.references and one.depths == other.depths

    few, many = make(4), make(9)
    late = many[3]  # before any other
    assert [same(a, b) for a, b in zip(few, many, strict=False)] == [True] * 4
    assert same(late, few[3]) and same(few[-1], late) and same(few[2:][1], late)
    assert late.index == 3 and late.task == task and np.array_equal(late.ids_T, few[3].ids_T)
    assert len({sample.prompt for sample in many}) == 9
    assert not same(make(4, seed=2)[0], few[0])
    assert not same(make(4, length=8193)[0], few[0])
    with pytest.raises(IndexError):
        few[4]


def test_global_random_state_is_neither_read_nor_changed():
    import random

    random.seed(5)
    state = random.getstate()
    prompts = [
        sample.prompt for task in ("niah_multikey_2", "vt", "fwe") for sample in ruler.make(task, BYTES, 2048, 2)
    ]
    assert random.getstate() == state
    random.seed(6)
    again = [sample.prompt for task in ("niah_multikey_2", "vt", "fwe") for sample in ruler.make(task, BYTES, 2048, 2)]
    assert prompts == again


@pytest.mark.parametrize("task", ["niah_single_1", "cwe", "vt"])
def test_one_anchor_then_the_whole_text(task):
    for tokenizer in (BYTES, bpe.tokenizer()):
        sample = ruler.make(task, tokenizer, 3000, 1)[0]
        assert sample.ids_T.dtype == np.int32 and sample.ids_T[0] == tokenizer.bos_id
        assert np.array_equal(sample.ids_T[1:], tokenizer.encode(sample.prompt + sample.answer_prefix))


def test_chat_puts_the_answer_behind_the_assistants_header():
    tokenizer, template = bpe.tokenizer(), ChatTemplate.open(bpe.directory())
    sample = ruler.make("niah_single_2", tokenizer, 2048, 1, chat=template)[0]
    assert sample.prompt.startswith("<s><|user|>\nA special magic number")
    assert sample.prompt.endswith("in the provided text?<|end|>\n<|assistant|>\n")
    assert sample.answer_prefix.startswith(" The special magic number for ")
    ids = [tokenizer.rules.token_to_id(name) for name in ("<s>", "<|user|>", "<|end|>", "<|assistant|>")]
    assert [int((sample.ids_T == i).sum()) for i in ids] == [1, 1, 1, 1]
    assert sample.ids_T[0] == tokenizer.bos_id  # written by the template, not put before it once more
    without = bpe.TEMPLATE.replace("{{ bos_token }}", "")
    again = ruler.make("niah_single_2", tokenizer, 2048, 1, chat=ChatTemplate.of(without, {}))[0]
    assert again.ids_T[0] == tokenizer.bos_id and not again.prompt.startswith("<s>")


@pytest.mark.parametrize("task", ["niah_multiquery", "vt", "cwe", "fwe"])
def test_the_named_length_is_enough_and_one_less_is_not(task):
    for length in (100, 500):
        with pytest.raises(EvaluationError, match=f"{task} has no room in {length} tokens") as error:
            ruler.make(task, BYTES, length, 20)
    needed = int(str(error.value).split("at least ")[1].split(",")[0])
    if task == "vt":  # its example grows with the length
        return
    assert max(sample.num_tokens for sample in ruler.make(task, BYTES, needed + 40, 20)) <= needed + 40
    with pytest.raises(EvaluationError, match="no room"):
        ruler.make(task, BYTES, needed - 40, 20)


def test_what_else_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match=r"no task 'niah' in RULER; allowed: niah_single_1, .*, qa_2$"):
        ruler.make("niah", BYTES, 4096)
    with pytest.raises(EvaluationError, match="vt: a chat template needs the tokenizer of its directory; bytes has no"):
        ruler.make("vt", BYTES, 4096, 1, chat=ChatTemplate.of("", {}))
    with pytest.raises(EvaluationError, match="num_samples=0 is not allowed"):
        ruler.make("vt", BYTES, 4096, 0)
    for name, content, message in [
        ("a.json", '{"texts": ""}', "is no text, nor JSON"),
        ("half.json", '{"text": "\\ud800"}', "is no text, nor JSON .* UnicodeEncodeError"),
        ("b.json", '{"text": 3}', '"text" is a int; it must be a string'),
        ("c.txt", " \n", "essays of c.txt holds no text"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(EvaluationError, match=message):
            ruler.make("niah_single_2", BYTES, 4096, 1, essays=tmp_path / name)
    (tmp_path / "empty").mkdir()
    for name, message in [("empty", r"holds no file that ends in .json, .txt, .md"), ("none", "is no text")]:
        with pytest.raises(EvaluationError, match=message):
            ruler.make("niah_single_2", BYTES, 4096, 1, essays=tmp_path / name)


def test_essays_of_a_user_and_their_name_in_the_sample(tmp_path):
    (tmp_path / "PaulGrahamEssays.json").write_text('{"text": "Someone wrote this. It is short."}')
    sample = ruler.make("niah_single_2", BYTES, 2048, 1, essays=tmp_path / "PaulGrahamEssays.json")[0]
    assert sample.material == "essays of PaulGrahamEssays.json" and "Someone wrote this." in sample.prompt
    (tmp_path / "z.md").write_text("Last words.")
    both = ruler.make("niah_single_2", BYTES, 2048, 1, essays=tmp_path)[0]
    assert "It is short. Last words. Someone" in both.prompt
    austen = ruler.make("niah_single_2", BYTES, 2048, 1)[0]
    assert "not RULER's essays" in austen.material and "Emma Woodhouse" in austen.prompt
    assert "Austen" in ruler.TASKS["niah_single_2"].material and not ruler.TASKS["niah_single_1"].material
