"""qa_1 and qa_2 from files of the layouts of SQuAD 2.0 and HotpotQA."""

import json
import re

import pytest

from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.errors import EvaluationError
from anchorjax.evaluation.tasks import ruler

BYTES = tokenizer_lib.load("bytes")


def squad(folder, articles=6, paragraphs=5):
    def asked(a, p):
        answers = [{"text": f"answer {a}-{p}", "answer_start": 0}] * 2 + [{"text": f"{a}-{p}", "answer_start": 7}]
        possible = {"question": f"What is {a}-{p}?", "id": "", "answers": answers, "is_impossible": False}
        return [possible, {"question": "Why?", "id": "", "answers": [], "is_impossible": True}]

    content = [
        {
            "title": f"article {a}",
            "paragraphs": [
                {"context": f"Article {a} has answer {a}-{p}." + " More." * (5 + p), "qas": asked(a, p)}
                for p in range(paragraphs)
            ],
        }
        for a in range(articles)
    ]
    file = folder / "dev-v2.0.json"
    file.write_text(json.dumps({"version": "v2.0", "data": content}))
    return file


def hotpot(folder, questions=8):
    content = [
        {
            "_id": str(q),
            "question": f"Which is {q}?",
            "answer": f"answer {q}",
            "supporting_facts": [[f"title {q}.3", 0], [f"title {q}.7", 1]],
            "context": [[f"title {q}.{d}", [f"Sentence of {q}.{d}.", " Another."]] for d in range(10)],
        }
        for q in range(questions)
    ]
    file = folder / "hotpot_dev_distractor_v1.json"
    file.write_text(json.dumps(content))
    return file


def documents_of(sample) -> list[str]:
    context = sample.prompt.split("given documents.\n\n")[1].rsplit("\n\nAnswer the question", 1)[0]
    parts = re.split(r"(?:^|\n\n)Document (\d+):\n", context)
    assert [int(number) for number in parts[1::2]] == list(range(1, len(parts) // 2 + 1))
    return parts[2::2]


def test_squad_keeps_its_paragraph_and_then_its_article(tmp_path):
    samples = ruler.make("qa_1", BYTES, 1024, 30, squad=squad(tmp_path))
    for sample in samples:
        article, paragraph = divmod(sample.index, 5)
        documents = documents_of(sample)
        assert f"Question: What is {article}-{paragraph}?" in sample.prompt
        assert sample.references == (f"answer {article}-{paragraph}", f"{article}-{paragraph}")
        own = next(i for i, text in enumerate(documents) if sample.references[0] in text)
        assert sample.depths == (pytest.approx(100 * own / len(documents)),)
        assert len(documents) > 5 and len(set(documents)) == len(documents)
        assert sum(text.startswith(f"Article {article} ") for text in documents) == 5
        assert sample.answer_prefix == " Answer:" and sample.max_new_tokens == 32
    assert len({sample.depths for sample in samples}) > 5


def test_hotpot_keeps_its_ten_documents_or_those_with_the_answer(tmp_path):
    file = hotpot(tmp_path)
    for sample in ruler.make("qa_2", BYTES, 4096, 8, hotpot=file):
        documents = documents_of(sample)
        own = [f"title {sample.index}.{d}\nSentence of {sample.index}.{d}. Another." for d in range(10)]
        assert set(own) <= set(documents) and len(documents) > 10
        assert sample.depths == tuple(100 * documents.index(own[d]) / len(documents) for d in (3, 7))
    for sample in ruler.make("qa_2", BYTES, 700, 8, hotpot=file):
        documents = documents_of(sample)
        assert 2 <= len(documents) < 10
        assert {f"title {sample.index}.{d}" for d in (3, 7)} <= {text.split("\n")[0] for text in documents}


def test_longer_than_all_documents(tmp_path):
    sample = ruler.make("qa_1", BYTES, 100_000, 1, squad=squad(tmp_path))[0]
    assert len(documents_of(sample)) == 30 and sample.num_tokens < 100_000


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("qa_1", {}, "SQuAD 2.0 does not come with anchorjax: get dev-v2.0.json and name it with --squad=PATH"),
        ("qa_2", {}, "get hotpot_dev_distractor_v1.json and name it with --hotpot=PATH"),
        ("qa_1", {"squad": "missing.json"}, "squad=.*missing.json cannot be read as dev-v2.0.json: .*No such file"),
        ("qa_1", {"squad": "{"}, "squad=.* cannot be read as dev-v2.0.json: JSONDecodeError"),
        ("qa_1", {"squad": '{"data": "\\ud800"}'}, "squad=.* cannot be read as dev-v2.0.json: UnicodeEncodeError"),
        ("qa_2", {"hotpot": '{"data": []}'}, "hotpot=.* cannot be read as hotpot_dev_distractor_v1.json"),
        ("qa_1", {"squad": '{"data": []}'}, "holds no question that has an answer"),
    ],
)
def test_files_that_are_not_there_or_are_others(tmp_path, task, options, message):
    for name, content in options.items():
        options = {name: tmp_path / content}
        if not content.endswith(".json"):
            options = {name: tmp_path / "file.json"}
            options[name].write_text(content)
    with pytest.raises(EvaluationError, match=message):
        ruler.make(task, BYTES, 4096, 1, **options)


def test_more_samples_than_questions(tmp_path):
    with pytest.raises(EvaluationError, match=r"dev-v2\.0\.json has 30 questions, which is too few for 31 samples"):
        ruler.make("qa_1", BYTES, 65_536, 31, squad=squad(tmp_path))
