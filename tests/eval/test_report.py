"""The page about runs: their numbers, what differs, what is missing, and what is refused before anything is written."""

import json
import shlex

import pytest

from anchorjax.cli import report
from tests import chromium
from tests import html as pages
from tests.evaluation import made_runs

ODD = "<script>alert(1) $x_$ & 'y' \u202e日本"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four directories, and the page about them."""
    folder = tmp_path_factory.mktemp("report")
    made_runs.write_run(folder / "runs/anchor")
    made_runs.write_run(folder / f"runs/{ODD}", shift=0.25, data__mask="full", optimizer__learning_rate=2e-3)
    made_runs.write_run(folder / "runs/fresh", evaluations=False)
    (folder / "runs/fresh/commands.json").unlink()
    made_runs.write_results(folder / "eval-results/Tiny")
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def several(folder):
    paths = [folder / path for path in ("runs/anchor", f"runs/{ODD}", "runs/fresh", "eval-results/Tiny")]
    assert report.main([*map(str, paths), f"--out={folder / 'several.html'}"]) == 0
    return folder / "several.html"


def rows(page: pages.Read, label: str, count: int) -> list[str]:
    at = page.cells.index(label)
    return page.cells[at + 1 : at + 1 + count]


def test_scores_stand_side_by_side(several):
    page = pages.read(several.read_text())
    assert rows(page, "score", 4) == ["anchor", ODD.replace("\u202e", "\ufffd"), "fresh", "Tiny"]
    assert rows(page, "validation loss (nats per target)", 4) == ["1.7863", "2.0363", "1.7863", "–"]
    assert rows(page, "tokens/s", 4) == ["5,823", "5,823", "5,823", "–"]
    assert rows(page, "RULER at 2K (mean of 5 tasks), percent", 4) == ["68.5", "66.0", "–", "68.5"]
    assert rows(page, "niah_single_1, 4K", 4) == ["74.5", "72.0", "–", "74.5"]
    assert rows(page, "2K, 50%", 4) == ["50", "40", "–", "50"]
    assert rows(page, "hotpotqa", 4) == ["12.50", "12.25", "–", "12.50"]
    assert rows(page, "mean: English.overall", 4) == ["21.88", "21.88", "–", "21.88"]
    assert rows(page, "hellaswag.acc", 4) == ["0.3125 ± 0.0125", "0.3125 ± 0.0125", "–", "0.3125 ± 0.0125"]
    assert rows(page, "hellaswag.acc_norm", 4) == ["0.3400", "0.3400", "–", "0.3400"]
    assert rows(page, "1K: LongPPL", 4) == rows(page, "LongPPL at 1K", 4) == ["9.5000", "9.7500", "–", "9.5000"]
    assert rows(page, "64-128", 4) == ["9.9742", "12.81", "–", "–"]  # exp(2.3), exp(2.55)
    assert "niah_multikey_2" in page.text and "Jane Austen in place of RULER's essays" in page.text


def test_keys_that_differ_and_no_others(several):
    page = pages.read(several.read_text())
    start = page.cells.index("key")
    assert page.cells[start : start + 12] == [
        *("key", "anchor", ODD.replace("\u202e", "\ufffd"), "fresh"),
        *("data.mask", "anchor", "full", "anchor"),
        *("optimizer.learning_rate", "0.001", "0.002", "0.001"),
    ]
    assert page.cells.count("model.d_model") == 3  # in the whole configuration of each run


def test_a_name_is_no_markup(several):
    page = pages.read(several.read_text())
    assert not {"script", "a", "link", "iframe"} & set(page.tags)
    assert "<script>alert" in page.text
    for image in page.images:
        assert image["alt"] and not pages.is_blank(pages.pixels(image))
    # Losses and three curves, two figures of perplexity, and for each of three models RULER, needles and RoPE.
    assert len(page.images) == 4 + 2 + 3 * 3


def test_a_run_alone(inside):
    assert report.main(["runs/anchor"]) == 0
    page = pages.read((inside / "runs/anchor/report.html").read_text())
    assert page.text.count("a run of 300 steps, finished") == 1
    for line in (
        f"python train.py --config=configs/tiny.py --workdir={inside / 'runs/anchor'}",
        f"{made_runs.NEEDLE}\n",
        "anchorjax evaluate perplexity --workdir=runs/anchor --text=TEXTS --lengths=64",  # not made yet
        "anchorjax report runs/anchor",
    ):
        assert line in page.text, line
    missing = page.text[page.text.index("Not evaluated") : page.text.index("python train.py")]
    assert missing.count("anchorjax evaluate ") == 1
    assert "Deviation of attention by how far positions are shifted" in page.text
    assert "2 requests lost their beginning." in page.text
    assert "Keys of the configuration that differ" not in page.text


def test_what_was_not_evaluated_is_left_out_and_said(inside):
    assert report.main(["runs/fresh"]) == 0
    page = pages.read((inside / "runs/fresh/report.html").read_text())
    assert "There is no result of Perplexity, Perplexity of texts, LongPPL, RULER, Needle" in page.text
    assert "anchorjax evaluate needle --workdir=runs/fresh --lengths=64\n" in page.text
    assert "anchorjax evaluate longbench --workdir=runs/fresh --data=LONGBENCH\n" in page.text
    assert "LONGBENCH stands for the directory" in page.text
    assert "What was typed to train it was not recorded" in page.text
    assert len(page.images) == 4 and "Heat map" not in str(page.images)


def test_results_of_a_hugging_face_directory(inside):
    assert report.main(["eval-results/Tiny"]) == 0
    page = pages.read((inside / "eval-results/Tiny/report.html").read_text())
    assert made_runs.NEEDLE in page.text and "--hf=/models/Tiny --text=TEXTS" in page.text
    assert "Training" not in page.text and "config.json" not in page.text


def test_perplexity_of_texts(inside, tmp_path):
    places = {"0-64": 1.0, "64-128": 0.5}
    found = {"1024": {"perplexity": 12.5, "bits_per_byte": 1.25, "last_perplexity": 8.0, "by_position": places}}
    result = made_runs.REQUEST | {"text": "books.jsonl", "seed": 0, "last": 512, "window": 0, "lengths": found}
    made_runs.put(tmp_path / "Tiny/perplexity/perplexity.json", result)
    assert report.main([str(tmp_path / "Tiny")]) == 0
    page = pages.read((tmp_path / "Tiny/report.html").read_text())
    assert rows(page, "1K: perplexity", 1) + rows(page, "1K: perplexity of the last tokens", 1) == ["12.50", "8.0000"]
    assert rows(page, "64-128", 1) == ["1.6487"]
    assert rows(page, "last", 1) == ["512"] and len(page.images) == 1


def test_the_same_files_give_the_same_page(inside, several):
    paths = ["runs/fresh", "eval-results/Tiny", "--out=again.html"]
    contents = []
    for _ in range(2):
        assert report.main(paths) == 0
        contents.append((inside / "again.html").read_bytes())
    assert contents[0] == contents[1]
    assert shlex.join(["anchorjax", "report", *paths]).encode() in contents[0]


def test_a_running_job_has_a_page(inside, tmp_path):
    """Its last line may be half written, and there is no summary yet; what an older script left out is left out."""
    run = made_runs.write_run(tmp_path / "run")
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines[: lines.index('{"step": 200, "kind": "train"') + 10])
    needle = json.loads((run / "eval/needle/needle.json").read_text())
    del needle["percent"]
    made_runs.put(run / "eval/needle/needle.json", needle)
    assert report.main([str(run)]) == 0
    text = pages.read((run / "report.html").read_text()).text
    assert "a run of 190 steps, not finished" in text and "needles found" not in text


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", "{", "config.json cannot be read"),
        ("summary.json", "[]", "summary.json cannot be read: it holds no JSON object"),
        ("commands.json", '{"train": 1}', "commands.json cannot be read"),
        ("metrics.jsonl", '{"step": 1, "kind": "train"}\n{"step"\n', "metrics.jsonl:2 is damaged"),
        ("metrics.jsonl", '{"step": "x", "kind": "train"}\n', "metrics.jsonl:1 is damaged"),
        ("eval/perplexity/perplexity.json", "", "perplexity.json cannot be read"),
        ("eval/perplexity/perplexity.json", '{"by_position": {"a": 1}}', "by_position is no table of buckets"),
        ("eval/ruler/ruler.json", '{"scores": {"vt": {"4096": "x"}}}', "ruler.json is damaged: scores is no table"),
        ("eval/ruler/ruler.json", '{"scores": {"vt": 3}}', "ruler.json is damaged: scores is no table"),
        ("eval/needle/needle.json", '{"lengths": [1], "depths": [0], "percent": [[1, 2]]}', "needle.json is damaged"),
        ("eval/needle/needle.json", '{"lengths": ["x"], "depths": [0], "percent": [[1]]}', "needle.json is damaged"),
        ("eval/harness/harness.json", '{"results": []}', "harness.json is damaged: results is no table"),
        ("eval/longbench/longbench.json", '{"scores": 1}', "longbench.json is damaged: scores is no table"),
        ("eval/longppl/longppl.json", '{"lengths": {"1024": 2}}', "longppl.json is damaged: lengths is no table"),
        ("eval/rope_precision/answers.jsonl", "[]\n", "answers.jsonl is damaged: it does not begin with a request"),
        ("eval/rope_precision/shifts.png", "x", "shifts.png is damaged: it is no whole PNG"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, capsys, file, content, words):
    run = made_runs.write_run(tmp_path / "run")
    (run / file).write_text(content)
    assert report.main([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("anchorjax report: ") and error.count("\n") == 1 and words in error, error
    assert str(run / file) in error
    assert not (run / "report.html").exists() and not (run / "report_figures").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere holds neither a run (there is no config.json) nor results"),
        (["runs/anchor", "runs/fresh"], "--out=PATH is missing"),
        (["runs/anchor", "runs/../runs/anchor", "--out=x.html"], "runs/../runs/anchor is given twice"),
        (["runs/anchor", "--out=x.txt"], "--out=x.txt is not allowed"),
        (["runs/anchor", "--out=no/x.html"], "no/x.html cannot be written: there is no folder no"),
        (["model"], "model is a model's directory and no run; what was evaluated of it is in eval-results/model"),
        ([f"runs/{number}" for number in range(9)] + ["--out=x.html"], "9 runs are too many"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(inside, capsys, arguments, words):
    made_runs.put(inside / "model/config.json", {"model_type": "llama"})
    assert report.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (inside / "x.html").exists()


@chromium.needed
def test_a_browser_shows_it(several, tmp_path):
    seen = chromium.look(several, tmp_path)
    assert seen.console == []
    assert seen.pixels.shape == (3000, 1100, 3)
    stripes = [pages.colors(seen.pixels[top : top + 600]) for top in range(0, 3000, 600)]
    assert min(stripes) > 20 and max(stripes) > 200, "letters everywhere, and the colours of figures"


@chromium.needed
def test_a_phone_shows_it_without_scrolling_to_the_side(several, tmp_path):
    sizes = chromium.measure(several, tmp_path, 390)
    assert (sizes.window, sizes.needed) == (390, 390)
    assert sizes.tallest_head < 120
