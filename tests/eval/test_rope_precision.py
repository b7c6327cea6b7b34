"""rope_precision.py on a tiny model: what it writes, that it goes on, and what it refuses."""

import functools
import json
import shutil

import numpy as np
import pytest

from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.evaluation.tasks.ruler.haystack import open_essays
from anchorjax.experiments.rope_precision import random_init
from anchorjax.experiments.rope_precision import rope_precision as experiments
from anchorjax.inference import language_model
from eval import rope_precision
from tests.eval import plotted
from tests.evaluation import typed

PRECISIONS = ("bf16-phases32", "random-bf16", "narrow-bf16")  # which share compiled programs
OPTIONS = ["--tokens=64", "--lengths=32,100", "--document-tokens=30", "--samples=2", "--shifts=0,16,17,1M"]
OPTIONS += [f"--precisions={','.join(PRECISIONS)}", "--batch-size=2"]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Programs of eight take four times as long to compile."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (language_model, random_init):
            patch.setattr(module, "make_mesh", functools.partial(language_model.make_mesh, devices=1))
        yield


@pytest.fixture(scope="module")
def measured(directory, tmp_path_factory):
    out = tmp_path_factory.mktemp("rope") / "out"
    assert rope_precision.main([f"--hf={directory}", f"--out={out}", *OPTIONS]) == 0
    return out


@pytest.fixture(scope="module")
def result(measured):
    return json.loads((measured / "rope_precision.json").read_text())


def test_every_experiment_is_written_and_drawn(measured, result):
    of_layouts = {layout: {"0", str(2**20)} for layout in experiments.LAYOUTS}
    labels = {"shifts": {"0", "16", "17", str(2**20)}, "lengths": {"0"}} | of_layouts
    for experiment, expected in labels.items():
        assert set(result[experiment]) == set(PRECISIONS) == set(result["variants"])
        assert all(set(found) == expected for found in result[experiment].values())
    assert len((measured / "answers.jsonl").read_text().splitlines()) == 2 + 3 * 2 * (4 + 1 + 4 * 2)
    pictures = {path.name for path in measured.glob("*.png")}
    layouts = {f"layouts-{precision}.png" for precision in PRECISIONS}
    assert pictures == {"shifts.png", "lengths.png", "logits.png", "keys.png", "tables.png"} | layouts


def test_pictures_show_the_result(measured, result, drawn):
    """Both axes are logarithmic, so a deviation of 0 has no place."""

    def lines(name):
        return plotted.lines(drawn(measured / f"{name}.png"))

    def of_lengths(of):
        """By precision, what the experiment on lengths found."""
        return {precision: of(result["lengths"][precision]["0"]) for precision in PRECISIONS}

    shifts = {17: 1, 0: 16, 2**20: 2**20 - 16}  # by their distances from 16, the nearest first
    assert lines("shifts") == {
        precision: (list(shifts.values()), [found[str(shift)]["attention"]["all"][0] for shift in shifts])
        for precision, found in result["shifts"].items()
    }
    lengths = [32, 100]
    assert lines("lengths") == of_lengths(lambda found: (lengths, found["attention"]["all"]))
    assert lines("logits") == of_lengths(lambda found: (lengths, found["logit"]))
    keys = [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33, 65]
    assert lines("keys") == of_lengths(lambda found: (keys, found["columns"]))
    for precision in PRECISIONS:
        of_layouts = {layout: result[layout][precision]["0"]["attention"]["all"] for layout in experiments.LAYOUTS}
        assert lines(f"layouts-{precision}") == {layout: (lengths, y) for layout, y in of_layouts.items()}
    errors, positions = result["tables"]["errors"], result["tables"]["positions"]
    drawn_errors = lines("tables")
    assert set(drawn_errors) == {name for name, ys in errors.items() if any(ys)}
    for name, (x, y) in drawn_errors.items():
        places = [place for place, error in enumerate(errors[name]) if error]
        assert x == [positions[place] for place in places] and y == [errors[name][place] for place in places]


def test_numbers_hang_together(result):
    for precision in PRECISIONS:
        shifts = result["shifts"][precision]
        assert set(shifts["16"]["attention"]["all"]) == {0.0}  # against itself
        for experiment, labels in (
            (name, result[name][precision]) for name in ("shifts", "lengths", "anchor", "reset")
        ):
            for label, found in labels.items():
                parts = found["attention"]
                groups = np.sum([parts[name] for name in ("first", "starts", "others")], 0)
                np.testing.assert_allclose(groups, parts["all"], rtol=1e-5)
                assert all(np.less_equal(found["low"], np.add(parts["all"], 1e-12)))
                assert all(np.less_equal(parts["all"], np.add(found["high"], 1e-12)))
                if (experiment, label) != ("shifts", "16"):
                    assert min(parts["all"]) > 0
        found = result["lengths"][precision]["0"]
        edges = experiments.column_edges(100)
        assert edges == [0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 100]
        assert np.dot(found["columns"], np.diff(edges)) == pytest.approx(found["attention"]["all"][-1], rel=1e-4)
        assert sum(found["by_layer"]) == pytest.approx(found["attention"]["all"][-1], rel=1e-4)


def test_each_baseline_has_its_own_weights(result):
    found = {name: result["lengths"][name]["0"]["attention"]["all"][-1] for name in PRECISIONS}
    assert found["random-bf16"] > 1.5 * found["narrow-bf16"]


def test_a_killed_measurement_goes_on_to_the_same_result(directory, measured, tmp_path):
    out = shutil.copytree(measured, tmp_path / "out")
    lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (out / "answers.jsonl").write_bytes(b"".join(lines[:3]) + b"".join(lines[5:-1]) + lines[-1][:10])
    before = typed.load(out / "rope_precision.json")
    (out / "rope_precision.json").unlink()
    assert rope_precision.main([f"--hf={directory}", f"--out={out}", *OPTIONS]) == 0
    assert typed.load(out / "rope_precision.json") == before
    after = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    assert sorted(line for line in after if b'"command"' not in line) == sorted([lines[0], *lines[2:]])


def test_the_recorded_command_gives_the_same_without_weights(measured, tmp_path, monkeypatch):
    out = shutil.copytree(measured, tmp_path / "rope_precision")
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    monkeypatch.setattr("anchorjax.experiments.rope_precision.random_init.draw", None)
    typed.assert_makes_the_same(rope_precision.main, out / "rope_precision.json")


def test_rows_are_what_the_layouts_say(directory):
    plan = experiments.Plan(("layouts",), ("bf16",), (0,), 16, 64, (100,), 30, 1, 42)
    model, text = language_model.describe(hf=directory, dtype="float32"), open_essays(None)
    rows = {name: experiments.make_row(plan, model, text, name, 0, (0, 2**17)) for name in experiments.LAYOUTS}
    index_T = np.arange(100)
    documents_T = np.concatenate([[0], np.repeat([1, 2, 3, 4], 30)])[:100]
    for name, row in rows.items():
        assert row.tokens_T[0] == model.tokenizer.bos_id
        assert np.array_equal(row.tokens_T, rows["full"].tokens_T)
        assert np.array_equal(row.segment_ids_T, 0 * documents_T if name == "full" else documents_T)
        assert row.num_anchors == (name == "anchor")
        reference_T = np.concatenate([[0], np.tile(np.arange(30), 4)])[:100] if name == "reset" else index_T + 16
        assert np.array_equal(row.positions_PT, [reference_T, index_T, index_T + 2**17])
    other = experiments.make_row(plan, model, text, "full", 1, (0,)).tokens_T
    assert not np.array_equal(other[1:31], rows["full"].tokens_T[1:31])


def test_a_short_text_begins_anew():
    text = open_essays(None)
    short = type(text).of("a short text", "One two. Three four.")
    tokens = experiments.excerpt(short, tokenizer_lib.load("bytes"), 60, "1")
    assert len(tokens) == 60 and bytes(tokens.astype(np.uint8)).decode().count("One two. Three four.") >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --workdir (a training run) and --hf (a Hugging Face directory)"),
        (["--hf={}", "--dtype=bfloat16"], "--dtype=bfloat16 is not allowed: --precisions says"),
        (["--hf={}", "--precisions=bf16,fp8"], "there is no precision 'fp8'; there are fp32, "),
        (["--hf={}", "--experiments=needles"], "there is no experiment 'needles'; there are shifts, lengths, layouts"),
        (["--hf={}", "--reference=0,16"], "--reference=[0, 16] is not allowed: it is one shift"),
        (["--hf={}", "--tokens=1024"], "--lengths: 1024 is more than the model's context of 256"),
        (["--hf={}", "--tokens=64", "--lengths=64", "--document-tokens=63"], "too long for layouts"),
        (["--hf={}", "--shifts=2048M"], "shifts and lengths ask for 2,147,483,712 positions; allowed: below 2**31"),
        (["--hf={}", "--tokens=64", "--lengths=64", "--document-tokens=9", "--essays=none"], "essays=none"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_weight_is_read(
    arguments, message, directory, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    short = ["--tokens=64", "--lengths=64", "--document-tokens=9", "--shifts=0"]
    assert rope_precision.main([*short, *(argument.format(directory) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_essays_that_were_changed_are_another_request(directory, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("One two. " * 99)
    options = [f"--hf={directory}", f"--out={tmp_path / 'out'}", "--experiments=lengths", "--lengths=32", "--tokens=32"]
    options += ["--variants=bf16", "--samples=1", "--shifts=0", f"--essays={text}"]
    assert rope_precision.main(options) == 0
    text.write_text("Three four. " * 99)
    assert rope_precision.main(options) == 2
    assert "holds answers to another request (contents: " in capsys.readouterr().err


def test_answers_to_another_request_are_kept(directory, measured, capsys):
    before = (measured / "answers.jsonl").read_bytes()
    assert rope_precision.main([f"--hf={directory}", f"--out={measured}", *OPTIONS, "--seed=1"]) == 2
    assert "holds answers to another request (seed: 42 -> 1); give another --out" in capsys.readouterr().err
    assert (measured / "answers.jsonl").read_bytes() == before
