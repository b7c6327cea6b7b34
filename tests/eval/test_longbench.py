"""longbench.py on a tiny model: what it writes, that it goes on, and what it refuses."""

import importlib.util
import json
import shutil

import pytest

from anchorjax.errors import install_extra
from anchorjax.evaluation.tasks.longbench import TASKS
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generation, Generator
from eval import longbench
from tests.eval import plotted
from tests.evaluation import typed

LONG = " ".join(f"passage {i} of a long context." for i in range(40))  # more than the model takes


def sample(number: int, **changes) -> dict:
    return {
        "input": f"Question {number}?",
        "context": LONG if number % 2 else "short",
        "answers": [f"answer {number}", "other"],
        "length": 3000 * number,
        "all_classes": None,
        **changes,
    }


def write(data, name, **changes):
    lines = [json.dumps(sample(number, **changes)) + "\n" for number in range(4)]
    (data / f"{name}.jsonl").write_text("".join(lines))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two tasks, and one of LongBench-E."""
    data = tmp_path_factory.mktemp("data")
    for name in ("triviaqa", "hotpotqa", "hotpotqa_e"):
        write(data, name)
    return data


@pytest.fixture(scope="module")
def scored(directory, data, tmp_path_factory):
    """The default: all that is there, whole."""
    out = tmp_path_factory.mktemp("longbench") / "out"
    assert longbench.main([f"--hf={directory}", f"--data={data}", f"--out={out}", "--batch-size=2"]) == 0
    return out


def answers(out):
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()[2:]]


def test_scores_and_a_picture_are_written(scored, drawn):
    result = json.loads((scored / "longbench.json").read_text())
    assert set(result["scores"]) == {"hotpotqa", "triviaqa"}
    assert result["counts"] == {"hotpotqa": 4, "triviaqa": 4}
    assert result["prompt_tokens"] == {"hotpotqa": 256 - 32, "triviaqa": 256 - 32}
    assert result["averages"] == {} == result["by_length"]
    assert plotted.bars(drawn(scored / "longbench.png")) == pytest.approx(result["scores"])
    assert len(answers(scored)) == 8


def test_the_model_is_asked_as_pred_py_does(directory, tmp_path, monkeypatch):
    """Cut prompts, and a newline that ends answers to samsum, but not at once."""
    write(tmp_path, "hotpotqa")
    write(tmp_path, "samsum")
    asked = []

    def generate(self, prompts, max_new_tokens, sampling=None, stop_ids=()):
        barred = sampling.not_first if sampling else ()
        asked.append(([len(prompt) for prompt in prompts], max_new_tokens, barred, stop_ids))
        return [Generation((), "said", "stop") for _ in prompts]

    monkeypatch.setattr(Generator, "generate", generate)
    out = tmp_path / "out"
    arguments = [f"--hf={directory}", f"--data={tmp_path}", f"--out={out}", "--max-length=120", "--batch-size=4"]
    assert longbench.main(arguments) == 0
    description = language_model.describe(hf=directory)
    ends, (newline,) = description.eos_ids, description.tokenizer.encode("\n")
    short = len("\N{START OF TEXT}" + TASKS["samsum"].prompt.format(context="short", input="Question 0?"))
    assert sorted(asked) == [  # a batch ascends in length
        ([short, short, 120, 120], 128, (*ends, newline), (newline,)),
        ([120] * 4, 32, (), ()),
    ]
    assert {answer["text"] for answer in answers(out)} == {"said"}


def test_a_killed_evaluation_goes_on_to_the_same_result(directory, data, scored, tmp_path):
    out = shutil.copytree(scored, tmp_path / "out")
    lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (out / "answers.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:10])
    (out / "longbench.json").unlink()
    assert longbench.main([f"--hf={directory}", f"--data={data}", f"--out={out}"]) == 0
    assert (out / "answers.jsonl").read_bytes().splitlines(keepends=True)[:6] == lines[:6]
    assert typed.load(out / "longbench.json") == typed.load(scored / "longbench.json")


def test_the_recorded_command_gives_the_same_scores(scored, tmp_path, monkeypatch):
    out = shutil.copytree(scored, tmp_path / "longbench")
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    typed.assert_makes_the_same(longbench.main, out / "longbench.json")


def test_other_tasks_stand_beside_those_of_an_earlier_command(directory, data, scored, tmp_path, monkeypatch, capsys):
    out = shutil.copytree(scored, tmp_path / "model/longbench")
    (out / "longbench.json").unlink()
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    for task in ("triviaqa", "hotpotqa"):
        assert longbench.main([f"--hf={directory}", f"--data={data}", f"--out={out}", f"--tasks={task}"]) == 0
    assert capsys.readouterr().err == ""
    assert typed.load(out / "longbench.json") == typed.load(scored / "longbench.json")
    typed.assert_makes_the_same(longbench.main, out / "longbench.json")


def test_scores_are_those_of_the_answers(directory, data, tmp_path, monkeypatch, capsys):
    """The first two are right of three; no weight is read for what is there, and other samples would be asked."""
    out, decode = tmp_path / "out", language_model.describe(hf=directory).tokenizer.decode

    def generate(self, prompts, max_new_tokens):
        texts = map(decode, prompts)
        numbers = [next((n for n in "01" if f"Question {n}?" in text), "") for text in texts]
        return [Generation((), f"answer {n}\nPassage: more" if n else "nothing", "stop") for n in numbers]

    arguments = [f"--hf={directory}", f"--out={out}", "--samples=3"]
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "generate", generate)
        assert longbench.main([*arguments, f"--data={data}"]) == 0
    result = json.loads((out / "longbench.json").read_text())
    assert result["scores"]["triviaqa"] == pytest.approx(200 / 3)
    assert result["samples"] == 3 and result["counts"] == {"hotpotqa": 3, "triviaqa": 3}
    printed = capsys.readouterr().out
    assert "left out, without a file in" in printed and "narrativeqa, qasper" in printed
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    assert longbench.main([*arguments, f"--data={data}"]) == 0
    other = shutil.copytree(data, tmp_path / "data")
    changed = (other / "hotpotqa.jsonl").read_text().replace("Question 1", "Question one")
    (other / "hotpotqa.jsonl").write_text(changed)
    with pytest.raises(TypeError):  # there is no model to ask
        longbench.main([*arguments, f"--data={other}"])


def test_longbench_e_is_scored_by_length(directory, data, tmp_path, capsys):
    arguments = [f"--hf={directory}", f"--data={data}", f"--out={tmp_path}", "--e", "--batch-size=2"]
    assert longbench.main(arguments) == 0
    result = json.loads((tmp_path / "longbench.json").read_text())
    assert set(result["by_length"]["hotpotqa_e"]) == {"0-4k", "4-8k", "8k+"}
    assert result["prompt_tokens"] == {"hotpotqa_e": 256 - 32}
    assert "0-4k" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data={data}"], "give one of --workdir (a training run) and --hf (a Hugging Face directory)"),
        (["--hf={hf}", "--data=nowhere"], "--data=nowhere is not a directory"),
        (["--hf={hf}", "--data={hf}"], "holds no file of LongBench, such as narrativeqa.jsonl"),
        (["--hf={hf}", "--data={data}", "--tasks=hotpot"], "there is no task 'hotpot' in LongBench; allowed: narr"),
        (["--hf={hf}", "--data={data}", "--tasks=triviaqa,qasper"], "qasper: there is no file"),
        (["--hf={hf}", "--data={data}", "--tasks=trec"], "trec.jsonl:2 is no sample of trec: 'all_classes' must be"),
        (["--hf={hf}", "--data={data}", "--max-length=250"], "hotpotqa: a prompt of 250 tokens and 32 of the answer"),
        (["--hf={hf}", "--data={data}", "--template=chat"], "--template=chat: "),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_weight_is_read(
    arguments, message, directory, data, capsys, monkeypatch, tmp_path
):
    some = shutil.copytree(data, tmp_path / "data")
    lines = [sample(0, all_classes=["answer 0"]), sample(1)]
    (some / "trec.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    if not any("--tasks" in argument for argument in arguments):
        (some / "trec.jsonl").unlink()
    assert longbench.main([argument.format(hf=directory, data=some) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_missing_library_is_one_line(directory, monkeypatch, tmp_path, capsys):
    write(tmp_path, "samsum")
    monkeypatch.chdir(tmp_path)
    there = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "rouge" else there(name))
    assert longbench.main([f"--hf={directory}", f"--data={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"longbench.py: rouge is missing: {install_extra('eval')}\n"
