"""generate.py, ruler.py and needle.py on a tiny model: what they write, that they go on, and what they refuse."""

import dataclasses
import importlib
import json
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest

from anchorjax.cli import generate
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.evaluation import options
from anchorjax.evaluation.tasks import ruler as ruler_lib
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generation, Generator
from eval import needle, ruler
from tests.eval import plotted
from tests.evaluation import typed

TASKS = "niah_single_1,vt"
LENGTHS = ["--lengths=1536,2K", "--context=2048", "--samples=2"]


def answers(out) -> list[dict]:
    lines = map(json.loads, (out / "answers.jsonl").read_text().splitlines())
    return [line for line in lines if "score" in line]


@pytest.fixture(scope="module")
def scored(directory, tmp_path_factory):
    out = tmp_path_factory.mktemp("ruler") / "out"
    assert ruler.main([f"--hf={directory}", f"--tasks={TASKS}", f"--out={out}", *LENGTHS]) == 0
    return out


def test_ruler_writes_scores_and_a_picture(scored, drawn):
    result = json.loads((scored / "ruler.json").read_text())
    assert set(result["scores"]) == set(TASKS.split(","))
    assert all(set(row) == {"1536", "2048"} for row in result["scores"].values())
    means = {length: sum(row[length] for row in result["scores"].values()) / 2 for length in ("1536", "2048")}
    assert result["averages"] == {length: {"scored": mean} for length, mean in means.items()}  # not all tasks
    percent_RC, rows, columns = plotted.heat_map(drawn(scored / "ruler.png"))
    assert (rows, columns) == (list(result["scores"]), ["1,536", "2K"])
    assert percent_RC.tolist() == [list(row.values()) for row in result["scores"].values()]
    assert len(answers(scored)) == 2 * 2 * 2


def test_a_killed_evaluation_goes_on_to_the_same_result(directory, scored, tmp_path):
    out = shutil.copytree(scored, tmp_path / "out")
    lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (out / "answers.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:10])
    (out / "ruler.json").unlink()
    assert ruler.main([f"--hf={directory}", f"--tasks={TASKS}", f"--out={out}", *LENGTHS, "--batch-size=3"]) == 0
    assert (out / "answers.jsonl").read_bytes().splitlines(keepends=True)[:4] == lines[:4]
    assert typed.load(out / "ruler.json") == typed.load(scored / "ruler.json")


def test_a_finished_evaluation_needs_no_weights(directory, scored, monkeypatch):
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    assert ruler.main([f"--hf={directory}", f"--tasks={TASKS}", f"--out={scored}", *LENGTHS]) == 0


def test_the_recorded_command_gives_the_same_scores(scored, tmp_path, monkeypatch):
    out = shutil.copytree(scored, tmp_path / "ruler")
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    typed.assert_makes_the_same(ruler.main, out / "ruler.json")


def test_other_tasks_and_lengths_stand_beside_those_of_an_earlier_command(directory, scored, tmp_path, monkeypatch):
    """Kept answers, asked for by task and then by length, give what one command finds, in any order."""
    out = shutil.copytree(scored, tmp_path / "ruler")
    request, _, *lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (out / "answers.jsonl").write_bytes(b"".join([request, *lines[::-1]]))  # no command has asked for them
    (out / "ruler.json").unlink()
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    common = [f"--hf={directory}", f"--out={out}", "--context=2048"]
    for arguments in (["--lengths=2K", "--tasks=niah_single_1"], ["--lengths=2K", "--tasks=vt"], ["--lengths=1536"]):
        assert ruler.main([*common, "--samples=2", f"--tasks={TASKS}", *arguments]) == 0
    assert typed.load(out / "ruler.json") == typed.load(scored / "ruler.json")
    assert len(json.loads((out / "ruler.json").read_text())["commands"]) == 3
    typed.assert_makes_the_same(ruler.main, out / "ruler.json")
    assert ruler.main([*common, "--lengths=2K", "--samples=1", "--tasks=vt"]) == 0
    fewer = typed.load(out / "ruler.json")
    assert (fewer["samples"], list(fewer["scores"])) == (1, ["vt"]), "other settings are other cells"
    assert ruler.main([*common, "--lengths=2K", "--samples=2", "--tasks=vt"]) == 0
    assert typed.load(out / "ruler.json") == typed.load(scored / "ruler.json")


def test_scores_are_those_of_the_answers(directory, tmp_path, monkeypatch):
    """With every second reference in the answers, half of each score is there."""
    rules = tokenizer_lib.load(str(directory))
    made = {
        (task, n, i): ruler_lib.make(task, rules, n, 2)[i]
        for task in TASKS.split(",")
        for n in (1536, 2048)
        for i in (0, 1)
    }
    by_prompt = {
        tuple(one.ids_T.tolist()): " and ".join(one.references) if i == 0 else "no" for (_, _, i), one in made.items()
    }

    def generate(self, prompts, max_new_tokens):
        return [Generation((), by_prompt.get(tuple(prompt), "nothing"), "stop") for prompt in prompts]

    monkeypatch.setattr(Generator, "generate", generate)
    assert ruler.main([f"--hf={directory}", f"--tasks={TASKS}", f"--out={tmp_path}", *LENGTHS]) == 0
    scores = json.loads((tmp_path / "ruler.json").read_text())["scores"]
    assert {value for row in scores.values() for value in row.values()} == {50.0}
    assert {(line["index"], line["score"]) for line in answers(tmp_path)} == {(0, 100.0), (1, 0.0)}


def test_needle_draws_its_grid(directory, tmp_path, capsys, monkeypatch, drawn):
    out = tmp_path / "model/needle"
    arguments = [f"--hf={directory}", "--lengths=1K,1536", "--context=2048", "--depths=3", "--haystack=noise"]
    assert needle.main([*arguments, f"--out={out}"]) == 0
    result = typed.load(out / "needle.json")
    assert np.shape(result["percent"]) == (2, 3)
    assert result["depths"] == [0.0, 50.0, 100.0]
    percent_RC, rows, columns = plotted.heat_map(drawn(out / "needle.png"))
    assert (rows, columns) == (["0%", "50%", "100%"], ["1K", "1,536"])
    np.testing.assert_array_equal(percent_RC, np.transpose(result["percent"]))
    assert "100%" in capsys.readouterr().out
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    typed.assert_makes_the_same(needle.main, out / "needle.json")
    (out / "needle.json").unlink()
    for length in ("1536", "1K"):  # one after the other, of kept answers
        assert needle.main([*arguments, f"--lengths={length}", f"--out={out}"]) == 0
    assert typed.load(out / "needle.json") == result


def test_generate_prints_one_text_or_several(directory, capsys):
    assert generate.main([f"--hf={directory}", "--prompt=abc", "--max-new-tokens=8"]) == 0
    streamed = capsys.readouterr().out
    options = ["--prompt=abc", "--prompt=defg", "--max-new-tokens=8", "--batch-size=2"]
    assert generate.main([f"--hf={directory}", *options]) == 0
    first, second = capsys.readouterr().out.split("\n---\n")
    assert first == streamed.rstrip("\n") != second


def test_a_prompt_is_drawn_alike_in_any_batch(directory, capsys):
    options = ["--prompt=abc", "--prompt=abc", "--prompt=defg", "--max-new-tokens=8", "--temperature=1", "--seed=3"]
    texts = []
    for rows in (1, 2):
        assert generate.main([f"--hf={directory}", *options, f"--batch-size={rows}"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    first, second, _ = texts[0].split("\n---\n")
    assert first != second


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (generate, ["--prompt=x"], "give one of --workdir (a training run) and --hf (a Hugging Face directory)"),
        (generate, ["--hf=nowhere", "--prompt=x"], "nowhere is not a directory"),
        (generate, ["--hf={}"], "give a --prompt or a --prompt-file"),
        (generate, ["--hf={}", "--workdir={}", "--prompt=x"], "give one of --workdir"),
        (generate, ["--workdir={}", "--prompt=x"], "is a Hugging Face directory: write --hf="),
        (generate, ["--hf={}", "--prompt-file=none"], "--prompt-file=none cannot be read: No such file or directory\n"),
        (generate, ["--hf={}", "--prompt-file={}/model.safetensors"], "model.safetensors is not UTF-8: byte "),
        (generate, ["--hf={}", "--prompt=x", "--stop="], "--stop='' is not allowed: it must be a text"),
        (generate, ["--hf={}", f"--prompt={'x' * 300}"], "more than the model's context of 256; --context=N"),
        (
            generate,
            ["--hf={}", "--prompt=x", "--top-p=2"],
            "--top-p=2.0 is not allowed: it must be above 0 and at most",
        ),
        (generate, ["--hf={}", "--prompt=x", "--temperature=-1"], "--temperature=-1.0 is not allowed: it must be 0 or"),
        (generate, ["--hf={}", "--prompt=caf\udce9"], r"--prompt='caf\udce9' is not UTF-8"),
        (generate, ["--hf={}", "--prompt=x", "--template=chat"], "--template=chat: "),
        (ruler, ["--hf={}", "--lengths=1M"], "--lengths: 1048576 is more than the model's context of 256"),
        (ruler, ["--hf={}", "--lengths=2K", "--context=2048", "--tasks=niah"], "there is no task 'niah' in RULER"),
        (
            ruler,
            ["--hf={}", "--lengths=2K", "--context=2048", "--tasks=qa_1"],
            "get dev-v2.0.json and name it",
        ),
        (ruler, ["--hf={}", "--lengths=100", "--tasks=vt"], "vt"),
        (ruler, ["--hf={}", "--lengths=2K", "--context=2048", "--last=2"], "--last is for --workdir"),
        (needle, ["--hf={}", "--lengths=1K", "--context=2048", "--essays=none"], "none"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_weight_is_read(
    script, arguments, message, directory, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    assert script.main([argument.format(directory) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_changed_is_another_request(directory, scored, tmp_path, capsys):
    changed = shutil.copytree(directory, tmp_path / directory.name)
    out = shutil.copytree(scored, tmp_path / "out")
    lines = (out / "answers.jsonl").read_text().replace(str(directory), str(changed)).splitlines()
    request = json.loads(lines[0])
    request["files"] = json.loads((scored / "answers.jsonl").read_text().splitlines()[0])["files"]
    (out / "answers.jsonl").write_text("\n".join([json.dumps(request), *lines[1:], ""]))
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    assert ruler.main([f"--hf={changed}", f"--tasks={TASKS}", f"--out={out}", *LENGTHS]) == 2
    assert "holds answers to another request (files: " in capsys.readouterr().err


def test_a_run_s_tokenizer_is_in_the_request(directory, tmp_path):
    """Beside it the directory may change, as training goes on."""
    files, run = shutil.copytree(directory, tmp_path / "files"), shutil.copytree(directory, tmp_path / "run")
    model = dataclasses.replace(language_model.describe(hf=run), fields={"data": {}}, files=files)
    before = options.request(model)
    (run / "metrics.jsonl").write_text("{}")
    assert options.request(model) == before
    (files / "tokenizer.json").write_text("{}")
    assert options.request(model)["files"] != before["files"]


def test_commands_of_the_documentation_are_understood(tmp_path, monkeypatch, capsys):
    """Each fails at the model, which does not exist, and not before."""
    page = (pathlib.Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"^anchorjax (?:evaluate )?(\w+) (.+)$", page, re.MULTILINE)
    assert {script for script, _ in found} >= {"generate", "perplexity", "longppl", "ruler", "needle", "longbench"}
    places = dict.fromkeys(("generate", "report"), "anchorjax.cli")
    for script, arguments in found:
        main = importlib.import_module(f"{places.get(script, 'eval')}.{script}").main
        assert main(shlex.split(arguments)) == 2
        assert re.search(r"is not a directory|there is no run in|holds neither a run", capsys.readouterr().err), (
            script,
            arguments,
        )


def test_answers_to_another_request_are_kept(directory, scored, capsys):
    before = (scored / "answers.jsonl").read_bytes()
    assert ruler.main([f"--hf={directory}", f"--tasks={TASKS}", f"--out={scored}", *LENGTHS, "--seed=1"]) == 2
    assert "holds answers to another request (seed: 42 -> 1); give another --out" in capsys.readouterr().err
    assert (scored / "answers.jsonl").read_bytes() == before


@pytest.fixture(scope="module")
def run(jobs):
    workdir = jobs.directory / "evaluated"
    jobs.run(workdir)
    return workdir


def test_a_run_is_scored_over_its_last_checkpoints(run, capsys):
    """The tiny run is of bytes, and keeps two checkpoints; its files beside eval/ stay as they are."""
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    arguments = [f"--workdir={run}", "--lengths=1K", "--context=1024", "--samples=1", "--tasks=fwe", "--last=2"]
    assert ruler.main(arguments) == 0
    result = json.loads((run / "eval/ruler/ruler.json").read_text())
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    assert result["steps"] == steps
    assert set(result["by_step"]) == set(map(str, steps))
    assert len(steps) == 2
    assert {file: file.stat().st_mtime_ns for file in before} == before
    capsys.readouterr()
    assert ruler.main([*arguments[:-1], "--last=3"]) == 2
    assert "--last=3 is more than the 2 checkpoints in" in capsys.readouterr().err


def test_a_run_that_names_no_tokenizer_is_of_bytes(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    for name in ("bytes", "auto"):
        config["data"]["tokenizer"] = name
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert language_model.describe(workdir=tmp_path).tokenizer.name == "bytes"


def test_another_checkpoint_of_a_run_is_asked_anew(run, tmp_path, monkeypatch):
    arguments = [f"--workdir={run}", "--lengths=1K", "--context=1024", "--depths=1", f"--out={tmp_path}"]
    *_, before, last = language_model.describe(workdir=run).steps()
    monkeypatch.setattr(language_model.Description, "steps", lambda _: [before])
    assert needle.main(arguments) == 0
    assert json.loads((tmp_path / "needle.json").read_text())["step"] == before
    monkeypatch.undo()
    assert needle.main(arguments) == 0
    assert json.loads((tmp_path / "needle.json").read_text())["step"] == last
    weights_id = language_model.describe(workdir=run).weights_id
    asked = [(line["weights_id"], line["step"], line["length"], line["index"]) for line in answers(tmp_path)]
    assert asked == [(weights_id(step), step, 1024, 0) for step in (before, last)]
    assert needle.main([*arguments, f"--step={before}"]) == 0
    assert json.loads((tmp_path / "needle.json").read_text())["step"] == before
    assert needle.main([*arguments, "--step=3"]) == 2


def test_a_run_goes_on_as_its_training_step_would(run):
    """Greedy tokens of a whole forward pass with the anchor in front."""
    import jax
    import jax.numpy as jnp

    from anchorjax import sharding
    from anchorjax.inference.generation import Generator
    from anchorjax.models.decoder import logits

    model = language_model.describe(workdir=run)
    assert (model.is_run, model.num_anchors, model.context) == (True, 1, 64)
    loaded = language_model.load(model, language_model.make_mesh(model.model, 1))
    assert loaded.step == json.loads((run / "summary.json").read_text())["step"]
    tokens, spec = [model.tokenizer.bos_id, *model.tokenizer.encode("It was ").tolist()], model.spec(64)
    prompt = list(tokens)
    segments_BT = np.array([[0] + [1] * 63], np.int32)

    @jax.jit
    def next_token(params, tokens_BT, last):
        arrays = tokens_BT, jnp.arange(64, dtype=jnp.int32)[None], segments_BT
        arrays = [jax.sharding.reshard(x, sharding.BATCH) for x in arrays]
        hidden_BTD = params.hidden(*arrays, spec)
        return jnp.argmax(logits(hidden_BTD, params.unembedding_DV(spec))[0, last])

    with jax.set_mesh(loaded.mesh):
        for _ in range(8):
            row = np.zeros((1, 64), np.int32)
            row[0, : len(tokens)] = tokens
            tokens.append(int(next_token(loaded.params, row, len(tokens) - 1)))
    made = Generator(loaded).generate([prompt], 8)[0]
    assert list(made.tokens) == tokens[len(prompt) :][: len(made.tokens)]
    assert len(made.tokens) == 8 or tokens[len(prompt) + len(made.tokens)] in model.eos_ids
