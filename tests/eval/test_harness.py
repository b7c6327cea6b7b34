"""eval/harness.py on a tiny model and tasks of local files: what it writes, that it goes on, and what it refuses."""

import functools
import json
import logging
import shutil

import lm_eval.tasks
import pytest

from anchorjax.errors import install_extra
from anchorjax.evaluation.tasks import harness
from tests.checkpoints.huggingface import tiny
from tests.eval import plotted
from tests.evaluation import harness as making
from tests.evaluation import typed
from tests.evaluation.making import write_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    tiny.make("llama untied", directory)
    write_tokenizer(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text()) | {"chat_template": making.TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    directory = making.write_tasks(tmp_path_factory.mktemp("tasks"))
    finish = json.loads((directory / "finish.yaml").read_text())
    beams = finish | {"task": "beams", "generation_kwargs": {"num_beams": 3}}
    gone = finish | {"task": "gone", "dataset_kwargs": {"data_files": str(directory / "gone.jsonl")}}
    unsafe = finish | {"task": "unsafe", "unsafe_code": True}
    for task in (beams, gone, unsafe):
        (directory / f"{task['task']}.yaml").write_text(json.dumps(task))
    return directory


@pytest.fixture(autouse=True)
def local_tasks(monkeypatch):
    """Without lm-eval's own thousands of tasks, whose list alone takes ten seconds to read."""
    making.compile_little(monkeypatch)
    without = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", without)
    monkeypatch.setattr(logging.getLogger("lm_eval"), "disabled", True)


@pytest.fixture
def evaluate(directory, tasks, tmp_path):
    """`evaluate(name, *arguments)`: harness.json of what was asked into the directory of that name."""

    def run(name: str, *arguments: str) -> dict:
        common = [f"--hf={directory}", f"--include-path={tasks}", f"--out={tmp_path / name}"]
        assert harness.main([*common, *arguments]) == 0
        return typed.load(tmp_path / name / "harness.json")

    return run


def test_scores_are_written_and_printed(evaluate, tmp_path, capsys, monkeypatch, drawn):
    found = evaluate("out", "--tasks=all_of_them")
    assert set(found["results"]) == {"all_of_them", "choose", "finish", "read"}
    assert found["n-samples"]["choose"] == {"original": 4, "effective": 4}
    assert found["notes"] == []
    shares = plotted.bars(drawn(tmp_path / "out/harness.png"))
    assert shares["choose acc"] == pytest.approx(100 * found["results"]["choose"]["acc,none"])
    assert not [name for name in shares if "perplexity" in name]
    out = capsys.readouterr().out
    assert f"|{found['results']['read']['word_perplexity,none']:.4f}|" in out.replace(" ", "")
    assert "- choose" in out and "written to" in out

    lines = (tmp_path / "out/answers.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/answers.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:7])
    assert evaluate("killed", "--tasks=all_of_them") == found
    assert (tmp_path / "killed/answers.jsonl").read_bytes().splitlines(keepends=True)[:5] == lines[:5]

    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    typed.assert_makes_the_same(harness.main, tmp_path / "killed/harness.json")
    fewer = evaluate("out", "--tasks=choo*,read", "--limit=2")  # of the same answers
    assert fewer["n-samples"]["choose"] == {"original": 4, "effective": 2}
    assert set(fewer["results"]) == {"choose", "read"}
    assert evaluate("out", "--tasks=all_of_them") == found
    assert "sample_len" not in str(found)

    answers = [line for line in lines if b'"command"' not in line and b'"tables"' not in line]
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart/answers.jsonl").write_bytes(b"".join(answers))
    evaluate("apart", "--tasks=finish")
    both = evaluate("apart", "--tasks=choose")
    assert set(both["results"]) == {"choose", "finish"} == set(both["versions"])
    assert both["tasks"] == "finish,choose"
    typed.assert_makes_the_same(harness.main, tmp_path / "apart/harness.json")
    assert evaluate("apart", "--tasks=all_of_them")["results"] == found["results"]


def test_examples_are_drawn_by_the_seed(evaluate, tmp_path):
    """The command in a report has it, 0 included."""
    prompts = {}
    for seed in (0, 1):
        name = f"{seed}/harness"
        found = evaluate(name, "--tasks=choose", "--samples=2", "--num-fewshot=2", f"--seed={seed}")
        assert (found["seed"], found["limit"]) == (seed, 2)
        prompts[seed] = [
            json.loads(line)["index"] for line in (tmp_path / name / "answers.jsonl").open() if '"index"' in line
        ]
        typed.assert_makes_the_same(harness.main, tmp_path / name / "harness.json")
    assert prompts[0] != prompts[1]


def test_chats_and_examples(evaluate):
    """Other prompts; what had to be left out of them is said."""
    found = evaluate("chat", "--tasks=choose", "--template=chat", "--num-fewshot=3")
    assert found["n-shot"] == {"choose": 3}
    assert "the chat template takes no system messages, and they were left out" in found["notes"]
    assert any(
        note.endswith("requests were longer than 256 tokens and lost their beginning") for note in found["notes"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks=chose"], "--tasks: lm-eval has no task 'chose', and no group or tag of that name"),
        (["--tasks=choose,all_of_them"], "--tasks: Duplicate task 'choose'"),
        (["--tasks=beams"], "the task beams: generation_kwargs: num_beams=3 is not known here"),
        (["--tasks=gone"], "the task gone cannot be loaded: FileNotFoundError: "),
        (["--tasks=unsafe"], "the task unsafe runs code that the model writes"),
        (["--tasks=read", "--include-path=nowhere"], "--include-path=nowhere is not a directory"),
        (["--tasks=read", "--lengths=4K"], "--lengths: 4096 is more than the model's context of 256"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_weight_is_read(
    directory, tasks, arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    capsys.readouterr()
    assert harness.main([f"--hf={directory}", f"--include-path={tasks}", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1:]
    assert len(error) == 1 and error[0].startswith("harness.py: ") and message in error[0]
    assert not list(tmp_path.iterdir())


def test_more_examples_than_a_task_has(directory, tasks, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    arguments = ["--tasks=choose", "--num-fewshot=9", f"--include-path={tasks}", f"--out={tmp_path}"]
    assert harness.main([f"--hf={directory}", *arguments]) == 2
    assert "harness.py: --num-fewshot=9 is not allowed: " in capsys.readouterr().err


def test_a_damaged_file_of_specials(directory, tasks, tmp_path, capsys):
    changed = shutil.copytree(directory, tmp_path / "model")
    (changed / "special_tokens_map.json").write_text("{")
    options = ["--tasks=choose", f"--include-path={tasks}", f"--out={tmp_path / 'out'}"]
    assert harness.main([f"--hf={changed}", *options]) == 2
    assert "special_tokens_map.json" in capsys.readouterr().err.splitlines()[-1]


def test_without_lm_eval(directory, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert harness.main([f"--hf={directory}", "--tasks=mmlu"]) == 2
    error = capsys.readouterr().err
    assert error == f"harness.py: lm-eval is not installed: {install_extra('eval')}\n" and "requirements-eval" in error


def test_code_of_a_tokenizer_is_never_run(directory, monkeypatch):
    """RULER's tasks would."""
    from anchorjax.evaluation import options

    parsed = {"hf": directory, "workdir": None, "dtype": "auto", "context": 8192, "rope_theta": 0.0, "batch_size": 1}
    arguments = harness.argparse.Namespace(**parsed, lengths=[4096])
    model = options.description(arguments)
    assert harness.metadata(arguments, model) == {"tokenizer": str(directory), "max_seq_lengths": [4096]}
    monkeypatch.setattr(harness, "read_fields", lambda file: {"auto_map": {"AutoTokenizer": "theirs.Tokenizer"}})
    with pytest.raises(harness.UsageError, match="--lengths needs a Hugging Face tokenizer without code of its own"):
        harness.metadata(arguments, model)
