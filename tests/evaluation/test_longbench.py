"""LongBench's table, prompts, files, cuts and averages."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import transformers

from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.data.text.chat import ChatTemplate
from anchorjax.errors import EvaluationError
from anchorjax.evaluation.tasks import longbench
from anchorjax.evaluation.tasks.longbench import EVEN, PUBLISHED, TASKS, Row, Samples
from anchorjax.evaluation.tasks.longbench.prompts import PROMPTS
from anchorjax.evaluation.tasks.longbench.samples import middle_cut
from tests.evaluation import bpe

BYTES = tokenizer_lib.load("bytes")
# sha256 of THUDM/LongBench's dataset2prompt.json, keys sorted. A prompt may change only if it does there.
OFFICIAL = "71d3d9b8dc05b3cda9a6efc10414508eab26fc7925dad3aabb818bcb9c9b68d4"
# Where lm-eval's prompts are other than LongBench's: in white space, and the old "asconcisely".
OTHER_IN_LM_EVAL = {"narrativeqa", "triviaqa", "samsum", "passage_count", "passage_retrieval_en", "lcc", "repobench-p"}
THEIR_METRICS = {"code_similarity": "code_sim", "rouge_l": "rouge", "rouge_l_zh": "rouge_zh"}
SAMPLE = {
    "context": "It was a {braced} context.\n",
    "input": "Who was it?",
    "answers": ["Paragraph 3, 段落3"],
    "length": 4000,
    "all_classes": ["one", "two"],
}


def write(directory: Path, name: str, *samples: dict | str) -> Path:
    lines = [one if isinstance(one, str) else json.dumps(SAMPLE | one) for one in samples]
    (directory / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    return directory / f"{name}.jsonl"


def test_prompts_are_the_official_ones():
    content = json.dumps(PROMPTS, ensure_ascii=False, sort_keys=True)
    assert hashlib.sha256(content.encode()).hexdigest() == OFFICIAL


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_is_in_its_prompt(name, tmp_path):
    (row,) = longbench.read(write(tmp_path, name, {}), TASKS[name])
    assert SAMPLE["context"] in row.prompt
    assert (SAMPLE["input"] in row.prompt) == ("{input}" in TASKS[name].prompt)
    assert "{context}" not in row.prompt and "{input}" not in row.prompt
    assert row.classes == (("one", "two") if TASKS[name].metric == "classification" else ())


@pytest.mark.parametrize("name", TASKS)
def test_the_table_is_that_of_lm_eval(name):
    package = importlib.util.find_spec("lm_eval").submodule_search_locations[0]
    text = (Path(package) / f"tasks/longbench/{name}.yaml").read_text(encoding="utf-8")
    task = TASKS[name]
    metric = THEIR_METRICS.get(task.metric, task.metric)
    assert re.search(r"process_results: !function metrics\.get_(\w+)_with_score", text)[1] == metric
    assert int(re.search(r"max_gen_toks: (\d+)", text)[1]) == task.max_new_tokens
    assert (r'until: ["\n"]' in text) == task.answers_in_a_line
    written = re.search(r"^doc_to_text: (.*)$", text, re.MULTILINE)[1]
    prompt = json.loads(written) if written.startswith('"') else written[1:-1].replace(r"\n", "\n")
    prompt = prompt.replace("{{context}}", "{context}").replace("{{question}}", "{input}")
    assert (prompt != task.prompt) == (name.removesuffix("_e") in OTHER_IN_LM_EVAL)


def test_the_sizes_of_the_table():
    assert len(PUBLISHED) == 21 and len(EVEN) == 13
    assert [name for name in PUBLISHED if not TASKS[name].takes_template] == [
        "trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"
    ]  # fmt: skip
    assert [name for name in TASKS if TASKS[name].ends_with_line] == ["samsum", "samsum_e"]


def test_files_are_found(tmp_path):
    files = [write(tmp_path, name, {}) for name in ("vcsum", "qasper", "qasper_e", "other")]
    assert longbench.find(tmp_path) == {"qasper": files[1], "vcsum": files[0]}  # in the table's order
    assert longbench.find(tmp_path, default=EVEN) == {"qasper_e": files[2]}
    assert longbench.find(tmp_path, ["qasper_e", "vcsum"]) == {"qasper_e": files[2], "vcsum": files[0]}


def test_as_many_samples_as_are_asked_for(tmp_path):
    file = write(tmp_path, "trec", *({"input": f"number {i}"} for i in range(3)), "", "no JSON")
    assert [row.prompt[-8:] for row in longbench.read(file, TASKS["trec"], 2)] == ["number 0", "number 1"]
    with pytest.raises(EvaluationError, match=r"trec\.jsonl:5 is no sample of trec: not JSON"):
        longbench.read(file, TASKS["trec"])


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("qasper", "{", "not JSON"),
        ("qasper", "[]", "a list; it must be an object"),
        ("qasper", {"context": 3}, "'context' is 3; it must be a string"),
        ("qasper", {"input": None}, "'input' is None"),
        ("qasper", {"context": "half \ud800"}, "context holds a lone surrogate"),
        ("qasper", {"answers": []}, "'answers' must be a list of strings, and not be empty"),
        ("qasper", {"answers": "yes"}, "'answers' must be a list"),
        ("trec", {"all_classes": None}, "'all_classes' must be a list"),
        ("qasper_e", {"length": "long"}, "'length' is 'long'; it must be a whole number"),
        ("passage_retrieval_en", {"answers": ["3"]}, r"must hold 'Paragraph (\\d+)'"),
    ],
)
def test_a_bad_line_is_named(name, line, message, tmp_path):
    file = write(tmp_path, name, {}, line)
    with pytest.raises(EvaluationError) as caught:
        longbench.read(file, TASKS[name])
    assert str(caught.value).startswith(f"{file}:2 is no sample of {name}: ")
    assert message in str(caught.value)


def row(prompt: str, *answers: str, length: int = 0) -> Row:
    return Row(prompt, answers, length, ())


def english(words: int) -> str:
    return " ".join(f"word{i} naïve" for i in range(words))


@pytest.mark.parametrize("limit", [64, 65])
def test_a_cut_keeps_both_ends_as_pred_py_does(limit):
    text, rules = english(100), bpe.tokenizer()
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(bpe.directory())
    ids = [theirs.bos_token_id, *theirs(text, add_special_tokens=False).input_ids]
    half = int(limit / 2)
    expected = "".join(theirs.decode(part, skip_special_tokens=True) for part in (ids[:half], ids[-half:]))
    cut = middle_cut(text, limit, rules)
    assert cut == expected
    assert text.startswith(cut[:40]) and text.endswith(cut[-40:])
    whole = english(3)
    assert middle_cut(whole, 1 + len(rules.encode(whole)), rules) == whole
    assert middle_cut(whole, len(rules.encode(whole)), rules) != whole


@pytest.mark.parametrize("rules", [BYTES, bpe.tokenizer()], ids=["bytes", "bpe"])
def test_a_cut_prompt_has_the_tokens_that_it_may_have(rules):
    texts = [english(300), "会议" * 500, "🙂" * 301]
    for limit in range(100, 112):
        samples = Samples(TASKS["qasper"], [row(text) for text in texts], rules, 4096, limit)
        lengths = [len(samples[i].ids_T) for i in range(len(texts))]
        assert max(lengths) <= limit
        assert min(lengths) >= limit - 16  # less where a character lies on the cut
        assert lengths[0] >= limit - 3  # the pieces join anew
    assert samples[0].ids_T[0] == rules.bos_id


def test_a_chat_template_goes_round_the_cut():
    rules, chat = bpe.tokenizer(), ChatTemplate.open(bpe.directory())
    context = 300
    for name in PUBLISHED:
        task = TASKS[name]
        if task.max_new_tokens > 128:
            continue
        sample = Samples(task, [row(english(300))], rules, context, chat=chat)[0]
        assert ("<|user|>" in sample.prompt) == task.takes_template
        assert context - 4 <= len(sample.ids_T) + task.max_new_tokens <= context
        assert sample.prompt.count("word0 ") == 1 and "word299" in sample.prompt


def test_a_context_without_room_is_refused():
    with pytest.raises(
        EvaluationError, match=r"gov_report: a prompt and 512 of the answer are more than .* 256; --con"
    ):
        Samples(TASKS["gov_report"], [row("x")], BYTES, 256)
    with pytest.raises(EvaluationError, match="qasper: a prompt of 129 tokens and 128 of the answer"):
        Samples(TASKS["qasper"], [row("x")], BYTES, 256, 129)
    assert len(Samples(TASKS["qasper"], [row("x")], BYTES, 256, 128)[0].ids_T) == 2


def test_keys_name_prompts():
    samples = Samples(TASKS["qasper"], [row("x"), row("y"), row("x")], BYTES, 256)
    keys = [samples.digest(i) for i in range(3)]
    assert keys[0] == keys[2] != keys[1]


def test_scores_are_of_the_best_answer_and_of_the_first_line_of_some():
    said = "\n\nParis\nParis of old"
    assert longbench.score(TASKS["triviaqa"], said, row("", "Rome", "paris")) == 100.0
    assert longbench.score(TASKS["hotpotqa"], said, row("", "Rome", "paris")) == pytest.approx(100 * 2 / 5)
    assert longbench.score(TASKS["hotpotqa"], said, row("", "Rome")) == 0.0
    classes = Row("", ("one",), 0, ("one", "two"))
    assert longbench.score(TASKS["trec"], "one\ntwo", classes) == 100.0


def test_scores_by_length():
    scored = zip((0, 3999, 4000, 7999), (1.0, 2.0, 3.0, 5.0), strict=True)
    lines = [{"words": words, "score": score} for words, score in scored]
    assert longbench.by_length(lines) == {"0-4k": 1.5, "4-8k": 4.0}
    assert longbench.by_length([{"words": 8000, "score": 7.0}]) == {"8k+": 7.0}


def test_averages_are_those_of_the_published_table():
    """ChatGLM3-6B-32k, from the README of LongBench."""
    scores = dict(
        zip(
            PUBLISHED,
            [26.0, 43.3, 51.7, 62.3, 54.4, 44.9, 40.4, 44.78, 36.8, 23.9, 27.9, 17.8, 79.0, 87.1, 38.2, 42.0,
             2.0, 99.0, 94.0, 57.66, 54.76],
            strict=True,
        )
    )  # fmt: skip
    found = longbench.averages(scores)
    categories = ["single_doc", "multi_doc", "summarization", "few_shot", "code", "synthetic", "overall"]
    assert [round(found["en"][name], 1) for name in categories] == [40.3, 46.6, 29.5, 68.1, 56.2, 50.5, 48.5]
    assert [round(found["zh"][name], 1) for name in categories] == [62.3, 44.8, 17.8, 42.0, 56.2, 94.0, 52.8]
    assert found["all"]["single_doc"] == pytest.approx(np.mean([26.0, 43.3, 51.7, 62.3]))
    assert found["all"]["overall"] == pytest.approx(np.mean([found["all"][name] for name in categories[:-1]]))
    del scores["vcsum"]
    partial = longbench.averages(scores)
    assert partial["en"] == found["en"]
    assert "overall" not in partial["zh"] and "summarization" not in partial["all"]
    assert longbench.averages({"qasper_e": 1.0, "qasper": 1.0}) == {}
