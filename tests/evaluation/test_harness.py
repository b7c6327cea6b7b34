"""What lm-eval asks is answered as its own Hugging Face backend answers on the same weights."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.errors import EvaluationError
from anchorjax.evaluation.record import Record
from anchorjax.evaluation.tasks import lm_eval_model as harness
from anchorjax.inference import language_model, scoring
from anchorjax.inference.sampling import Sampling
from tests.evaluation import harness as making

LONG = "the quick brown fox jumps over the lazy dog, and " * 8  # 392 tokens, of which 256 fit
PAIRS = [
    ("one two", " three"),
    ("a trailing space goes to the answer ", "yes"),
    ("", "nothing before"),
    ("", "<s>said anyway"),
    ("<s>said before", " it all"),
    ("pick", " A"),
    ("pick", " B"),
    ("pick", " B"),
    ("choose:", "A"),  # of one token each
    ("choose:", "B"),
    (LONG, "and so on"),
    ("short", (LONG + LONG)[:256]),
]
TEXTS = ["a few words", LONG, LONG + LONG[:127], "x", "<s>said anyway", ""]
GREEDY = {"do_sample": False, "max_gen_toks": 12, "until": []}


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    making.compile_little(monkeypatch)


@pytest.fixture(scope="module", params=[("llama untied", False), ("gemma2", True)], ids=lambda param: param[0])
def pair(request, tmp_path_factory):
    family, with_bos = request.param
    return making.pair(family, tmp_path_factory.mktemp("model"), with_bos)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return making.pair("llama untied", tmp_path_factory.mktemp("model"), with_bos=False)


@pytest.fixture
def ours(llama, tmp_path):
    return llama.ours(tmp_path / "out")


def ask(kind: str, model, requests: list) -> list:
    return getattr(model, kind)([Instance(kind, {}, arguments, 0) for arguments in requests])


def test_likelihoods(pair, tmp_path):
    """Empty contexts, contexts and continuations as long as the model's own, and one that greedy decoding writes."""
    prompts = [f"one {word}" for word in making.WORDS]
    written = ask("generate_until", pair.theirs, [(prompt, GREEDY) for prompt in prompts])
    # Greedy tokens are bytes, and few of them alone are text.
    prompt, text = next(
        (prompt, text) for prompt, text in zip(prompts, written, strict=True) if text[:1].isascii() and text
    )
    requests = [*PAIRS, (prompt, text[0])]
    expected = ask("loglikelihood", pair.theirs, requests)
    ours = pair.ours(tmp_path)
    made = ask("loglikelihood", ours, requests)
    np.testing.assert_allclose([score for score, _ in made], [score for score, _ in expected], rtol=1e-5, atol=1e-4)
    assert [greedy for _, greedy in made] == [greedy for _, greedy in expected]
    assert made[-1][1]
    assert ours.cut == 2


def test_likelihoods_of_whole_texts(pair, tmp_path):
    expected = ask("loglikelihood_rolling", pair.theirs, [(text,) for text in TEXTS])
    made = ask("loglikelihood_rolling", pair.ours(tmp_path), [(text,) for text in TEXTS])
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-4)


def test_generated_texts(pair, tmp_path):
    free = ask("generate_until", pair.theirs, [("one two", GREEDY)])[0]
    requests = [
        ("one two", GREEDY),
        ("one two", GREEDY | {"until": [free[3:5], "never"]}),
        ("one two", {"until": free[-1], "max_new_tokens": 12}),
        ("one two", GREEDY | {"until": ["<pad>"]}),
        ("<s>said before", GREEDY | {"temperature": 0.0}),
        (LONG, GREEDY),
    ]
    expected = [ask("generate_until", pair.theirs, [one])[0] for one in requests]  # alone, since rows disturb rows
    assert ask("generate_until", pair.ours(tmp_path), requests) == expected
    assert expected[1] == free[: free.index(free[3:5])] != free


def test_texts_end_where_config_json_says(llama, tmp_path):
    """Without generation_config.json, as it is with Llama 3.1's list of ends in many fine-tuned copies."""
    free = ask("generate_until", llama.theirs, [("one two", GREEDY)])[0]
    end = llama.description.tokenizer.encode(free[3])[0].item()
    shutil.copytree(llama.directory, tmp_path / "model")
    (tmp_path / "model/generation_config.json").unlink()
    fields = json.loads((tmp_path / "model/config.json").read_text()) | {"eos_token_id": [1, end]}
    (tmp_path / "model/config.json").write_text(json.dumps(fields))
    ended = making.opened(tmp_path / "model", with_bos=False)
    expected = ask("generate_until", ended.theirs, [("one two", GREEDY)])[0]
    assert expected == free[:4] != free  # with the end, which is no special token here, and so is text to "hf"
    assert ask("generate_until", ended.ours(tmp_path / "out"), [("one two", GREEDY)])[0] == expected[:3]


def test_stop_strings_that_are_special_tokens(ours):
    """No decoded text has them."""
    assert list(ours._spelled(["<pad>", "ab", "</s>", "x", "<s>y"])) == [2, 1]


def test_scores_of_tasks(pair, tmp_path):
    """Multiple choice with examples, texts that are generated, and whole texts; of one model as a chat."""
    manager = TaskManager(include_path=making.write_tasks(tmp_path), include_defaults=False)
    chat = harness.ChatTemplate.open(pair.directory) if pair.with_bos else None
    ours = pair.ours(tmp_path / "out", chat=chat)
    asked = {"tasks": ["all_of_them"], "task_manager": manager, "apply_chat_template": bool(chat), "bootstrap_iters": 0}
    expected, made = (simple_evaluate(model=model, **asked)["results"] for model in (pair.theirs, ours))
    assert made.keys() == expected.keys() == {"all_of_them", "choose", "finish", "read"}
    for task, scores in expected.items():
        assert made[task].keys() == scores.keys()
        for name, value in scores.items():
            assert made[task][name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4)), name
    assert ours.no_system == bool(chat)


def test_chats_are_theirs(pair, tmp_path):
    chat = harness.ChatTemplate.open(pair.directory)
    ours = pair.ours(tmp_path, chat=chat)
    asked = [{"role": "user", "content": "What? "}]
    assert ours.apply_chat_template(asked) == pair.theirs.apply_chat_template(asked)
    for begun in ("It is", "It is "):
        messages = [{"role": "system", "content": "Be brief."}, *asked, {"role": "assistant", "content": begun}]
        expected = pair.theirs.apply_chat_template(messages, add_generation_prompt=False)
        assert ours.apply_chat_template(messages, add_generation_prompt=False) == expected
        assert expected.endswith("[assistant] " + begun)
    assert ours.chat_template(True) == pair.theirs.chat_template(True) == making.TEMPLATE


def test_answers_are_kept_as_they_come(llama, tmp_path, monkeypatch):
    def everything(model):
        with model.record:
            return ask("loglikelihood", model, PAIRS), ask("generate_until", model, [("x", GREEDY)])

    whole = everything(llama.ours(tmp_path / "a"))
    lines = (tmp_path / "a/answers.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(set(PAIRS)) - 1 + 1, "two choices are one answer"
    (tmp_path / "b").mkdir()
    (tmp_path / "b/answers.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:9])
    scores, texts = everything(llama.ours(tmp_path / "b"))
    np.testing.assert_allclose(scores, whole[0], rtol=1e-5)
    assert texts == whole[1]
    assert (tmp_path / "b/answers.jsonl").read_bytes().splitlines(keepends=True)[:4] == lines[:4]
    monkeypatch.setattr(language_model, "load", None)
    assert everything(llama.ours(tmp_path / "a")) == whole


def test_choices_of_one_token_share_a_pass(llama, tmp_path, monkeypatch):
    """As in lm-eval's own backend: MMLU asks four letters of each context."""
    rows = []
    inside = scoring.Scorer.next
    monkeypatch.setattr(scoring.Scorer, "next", lambda self, some: rows.extend(some) or inside(self, some))
    requests = [(context, answer) for context in ("one", "two", "three") for answer in "ABCD"]
    assert len(ask("loglikelihood", llama.ours(tmp_path), requests)) == 12
    assert len(rows) == 3


def test_what_is_drawn_is_the_requests_own(llama, tmp_path):
    """The same in any batch and after a kill; another draw for the same request again."""
    drawn = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 12}
    requests = [("one two", drawn), ("one two", drawn), ("three", drawn)]
    texts = ask("generate_until", llama.ours(tmp_path / "a"), requests)
    assert len(set(texts)) == 3
    again = llama.ours(tmp_path / "b")
    assert ask("generate_until", again, requests[2:]) == texts[2:]
    assert ask("generate_until", again, requests) == texts


def test_the_beginning_of_sequence_can_stand_before_every_text(llama, pair, tmp_path):
    """Once: not again where a text spells it, and not as a target of a whole text."""
    ours, plain = pair.ours(tmp_path / "a", bos=True), llama.ours(tmp_path / "b")
    for text in ("abc", "<s>abc"):
        assert ours.tok_encode(text) == [0, *plain.tok_encode("abc", add_special_tokens=False)]
    assert ours._windows("abc") == plain._windows("abc")


def test_a_run_s_beginning_of_sequence_is_never_cut_off(llama, tmp_path):
    """It is the anchor; "hf" cuts it, and so does the description of a Hugging Face directory."""
    short = dataclasses.replace(llama.description, context=20)
    for bos in (False, True):
        ours = harness.adapter(short, Record(tmp_path / str(bos), {}), bos=bos)
        context, new = ours._row(ours.tok_encode("a" * 50), ours.tok_encode("b" * 4, add_special_tokens=False))
        assert (len(context), len(new), context[0] == 0) == (17, 4, bos)
        windows = ours._windows("abcdefg " * 9)
        assert all(
            (context[0] == 0) == (bos or first)
            for first, (context, _) in zip([True, *[False] * 99], windows, strict=False)
        )
        assert max(len(context) + len(continuation) for context, continuation in windows) <= 21
        assert sum(len(continuation) for _, continuation in windows) == 72


def test_bytes_spell_nothing(llama, tmp_path):
    """A run's tokenizer of bytes: <s> is text, and BOS is where `bos` puts it."""
    description = dataclasses.replace(llama.description, tokenizer=ByteTokenizer(), files=None)
    plain, ours = (harness.adapter(description, Record(tmp_path / str(bos), {}), bos=bos) for bos in (False, True))
    assert plain.tok_encode("<s>") == ours.tok_encode("<s>", add_special_tokens=False) == [*b"<s>"]
    assert ours.tok_encode("<s>") == [256, *b"<s>"]
    assert ours._windows("<s>") == plain._windows("<s>") == [([256], [*b"<s>"])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_beams": 4}, "generation_kwargs: num_beams=4 is not known here"),
        ({"max_length": 4}, "generation_kwargs: max_length=4 is not known here"),
        ({"until": ["a", ""]}, "until=['a', ''], max_gen_toks=12 is not allowed"),
        ({"max_gen_toks": 0}, "max_gen_toks=0 is not allowed"),
        ({"do_sample": True}, "do_sample=True needs a temperature above 0"),
        ({"max_gen_toks": 256}, "max_gen_toks=256 leaves no room for a prompt in the model's context of 256"),
    ],
)
def test_generation_that_cannot_be(ours, monkeypatch, change, message):
    monkeypatch.setattr(language_model, "load", None)
    with pytest.raises(EvaluationError) as caught:
        ask("generate_until", ours, [("x", GREEDY | change)])
    assert message in str(caught.value)


def test_options_that_ask_for_nothing(llama):
    assert harness.settings(GREEDY | {"num_beams": 1}, None) == harness.settings(GREEDY, None)
    assert harness.settings({}, None) == harness.Settings((), 256, Sampling())


def test_usual_values_are_those_of_generation_config(tmp_path):
    drawn = {"do_sample": True, "temperature": 0.5, "max_gen_toks": 3}
    assert harness.settings(drawn, tmp_path).sampling == Sampling(0.5, 50, 1.0)
    config = {"top_k": None, "top_p": 0.9, "repetition_penalty": 1.1, "temperature": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert harness.settings(drawn, tmp_path).sampling == Sampling(0.5, 50, 0.9)
    assert harness.settings(drawn | {"top_p": 0.3, "top_k": 5}, tmp_path).sampling == Sampling(0.5, 5, 0.3)
    assert harness.not_applied(tmp_path) == "repetition_penalty=1.1"


def test_a_continuation_longer_than_the_context(ours, monkeypatch):
    monkeypatch.setattr(language_model, "load", None)
    for continuation in ("x" * 257, ""):
        with pytest.raises(EvaluationError, match=f"a continuation of {len(continuation)} tokens cannot be scored"):
            ask("loglikelihood", ours, [("a", continuation)])
