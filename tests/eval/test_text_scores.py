"""perplexity.py and longppl.py on texts: numbers of transformers, what is written, going on, what is refused."""

import gc
import json
import math
import os
import shutil
import weakref

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.evaluation import texts as texts_lib
from anchorjax.inference import language_model
from anchorjax.training.evaluate import bucket_edges
from eval import longppl, perplexity
from tests.checkpoints.huggingface import tiny
from tests.eval import plotted
from tests.evaluation import typed
from tests.evaluation.making import write_tokenizer

WORDS = ["dear", "Emma", "was", "walking", "to", "Highbury", "again,", "and", "Mr.", "Knightley"]
RNG = np.random.default_rng(1)
TEXTS = [" ".join(RNG.choice(WORDS, size)) for size in (5, 40, 40, 40, 40, 8)]
LAST = 10
PERPLEXITY = ["--lengths=100,110", "--samples=3", f"--last={LAST}"]
LONGPPL = ["--lengths=100", "--samples=3", "--short-context=16", "--stride=20", "--alpha=0.05", "--beta=-5"]
ROWS = "--batch-size=2"  # for all that are compared or share compiled programs


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Meshes are the business of test_scoring.py; on one device a batch has as many rows as was asked for."""
    with pytest.MonkeyPatch.context() as patch:
        make_mesh = language_model.make_mesh
        patch.setattr(language_model, "make_mesh", lambda model: make_mesh(model, 1))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(transformers' model, its directory)."""
    directory = tmp_path_factory.mktemp("model")
    theirs = tiny.make("llama untied", directory)
    write_tokenizer(directory)
    return theirs, directory


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    """A directory with another model, whose tokens are of two letters where they can be."""
    directory = tmp_path_factory.mktemp("evaluator")
    tiny.make("qwen2", directory)
    write_tokenizer(directory)
    spec = json.loads((directory / "tokenizer.json").read_text())
    pairs = [("e", "a"), ("a", "n"), ("Ġ", "w"), ("i", "g"), ("l", "k")]
    vocabulary = spec["model"]["vocab"]
    for pair in pairs:
        vocabulary["".join(pair)] = len(vocabulary)
    spec["model"]["merges"] = [list(pair) for pair in pairs]
    Tokenizer.from_str(json.dumps(spec)).save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "emma.jsonl"
    file.write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS))
    return file


@pytest.fixture(scope="module")
def scored(model, text, tmp_path_factory):
    """What perplexity.py wrote."""
    out = tmp_path_factory.mktemp("perplexity") / "out"
    assert perplexity.main([f"--hf={model[1]}", f"--text={text}", f"--out={out}", ROWS, *PERPLEXITY]) == 0
    return out


def their_nats(theirs, directory, one: str, length: int) -> np.ndarray:
    rules = tokenizer_lib.load(str(directory))
    ids = [rules.bos_id, *rules.encode(one).tolist()][:length]
    with torch.no_grad():
        logits_TV = theirs(torch.tensor([ids])).logits[0, :-1].double()
    return -torch.log_softmax(logits_TV, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def test_perplexity_is_that_of_transformers(model, scored, drawn):
    """By length, of three of the four long documents; the two short ones are counted as far as they were met."""
    result = json.loads((scored / "perplexity.json").read_text())
    answers = [json.loads(line) for line in (scored / "answers.jsonl").read_text().splitlines()[2:]]
    assert len(answers) == 6
    for length in (100, 110):
        found = result["lengths"][str(length)]
        nats = {sum(x): x for x in (their_nats(*model, one, length) for one in TEXTS if len(one) >= 149)}
        assert len(nats) == 4
        mine = [sum(answer["nats"]) for answer in answers if answer["length"] == length]
        chosen = [next(x for total, x in nats.items() if math.isclose(total, one, rel_tol=1e-4)) for one in mine]
        nats_RT = np.array(chosen)
        assert nats_RT.shape == (3, length - 1)
        assert found["documents"] == 3 and found["targets"] == nats_RT.size and found["too_short"] <= 2
        assert math.isclose(found["loss"], nats_RT.mean(), rel_tol=1e-5)
        assert math.isclose(found["perplexity"], math.exp(nats_RT.mean()), rel_tol=1e-4)
        assert math.isclose(found["last_perplexity"], math.exp(nats_RT[:, -LAST:].mean()), rel_tol=1e-4)
        assert math.isclose(found["bits_per_byte"], nats_RT.mean() / math.log(2), rel_tol=1e-5), "a byte is a token"
        edges = bucket_edges(length)
        for start, end in zip([0, *edges], edges, strict=False):
            if start < length - 1:
                place = found["by_position"][f"{start}-{end}"]
                assert math.isclose(place, nats_RT[:, start:end].mean(), rel_tol=1e-5)
    drawn_lines = plotted.lines(drawn(scored / "perplexity.png"))
    assert len(drawn_lines) == 2
    for (x, y), length in zip(drawn_lines.values(), ("100", "110"), strict=True):
        place = result["lengths"][length]["by_position"]
        assert (x, y) == ([int(bucket.split("-")[1]) for bucket in place], list(place.values()))


def killed(out, directory, keep: int):
    """A copy of a finished evaluation as a kill would have left it, in the middle of line `keep`."""
    shutil.copytree(out, directory)
    lines = (directory / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (directory / "answers.jsonl").write_bytes(b"".join(lines[:keep]) + lines[keep][:10])
    for file in directory.glob("*.json"):
        file.unlink()
    return directory, lines[:keep]


def test_a_killed_perplexity_goes_on_to_the_same_result(model, text, scored, tmp_path):
    out, kept = killed(scored, tmp_path / "out", 3)
    assert perplexity.main([f"--hf={model[1]}", f"--text={text}", f"--out={out}", ROWS, *PERPLEXITY]) == 0
    assert (out / "answers.jsonl").read_bytes().splitlines(keepends=True)[:3] == kept
    assert typed.load(out / "perplexity.json") == typed.load(scored / "perplexity.json")


def test_a_finished_perplexity_needs_no_weights(model, text, scored, monkeypatch):
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    assert perplexity.main([f"--hf={model[1]}", f"--text={text}", f"--out={scored}", ROWS, *PERPLEXITY]) == 0


def test_the_recorded_command_gives_the_same_perplexity(scored, tmp_path, monkeypatch):
    out = shutil.copytree(scored, tmp_path / "perplexity")
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    typed.assert_makes_the_same(perplexity.main, out / "perplexity.json")


def test_other_lengths_stand_beside_those_of_an_earlier_command(model, text, scored, tmp_path, monkeypatch, capsys):
    out = shutil.copytree(scored, tmp_path / "out")
    (out / "perplexity.json").unlink()
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    common = [f"--hf={model[1]}", f"--text={text}", f"--out={out}", *PERPLEXITY]
    for length in (100, 110):
        assert perplexity.main([*common, f"--lengths={length}"]) == 0
    assert typed.load(out / "perplexity.json") == typed.load(scored / "perplexity.json")
    assert capsys.readouterr().err == ""
    assert perplexity.main([*common, "--samples=2"]) == 0
    found = typed.load(out / "perplexity.json")["lengths"]
    assert {length: one["documents"] for length, one in found.items()} == {"100": 2, "110": 2}


def test_windows_reach_beyond_the_context(model, tmp_path, capsys):
    """400 tokens with a context of 256; a folder of text files is a text, too."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/long.txt").write_text(" ".join(TEXTS))
    arguments = [f"--hf={model[1]}", f"--text={tmp_path / 'texts'}", "--lengths=400", f"--out={tmp_path / 'out'}"]
    assert perplexity.main([*arguments, "--window=101", "--stride=30", ROWS]) == 0
    found = json.loads((tmp_path / "out/perplexity.json").read_text())
    assert (found["window"], found["stride"], found["lengths"]["400"]["targets"]) == (101, 30, 399)
    first = their_nats(*model, " ".join(TEXTS), 65)
    assert math.isclose(found["lengths"]["400"]["by_position"]["0-64"], first.mean(), rel_tol=1e-5)
    assert "1,024" not in capsys.readouterr().out


def run_longppl(directory, text, out, *arguments: str) -> dict:
    assert longppl.main([f"--hf={directory}", f"--text={text}", f"--out={out}", ROWS, *arguments]) == 0
    return json.loads((out / "longppl.json").read_text())


@pytest.fixture(scope="module")
def judged(model, evaluator, text, tmp_path_factory):
    """(what longppl.py wrote with an evaluator, how many models were in memory when one was loaded)."""
    alive, most, load = [], [], language_model.load

    def counted(*arguments, **options):
        gc.collect()
        most.append(sum(one() is not None for one in alive))
        loaded = load(*arguments, **options)
        alive.append(weakref.ref(loaded.params))
        return loaded

    out = tmp_path_factory.mktemp("longppl") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "load", counted)
        run_longppl(model[1], text, out, f"--evaluator-hf={evaluator}", *LONGPPL)
    return out, most


def test_one_model_is_in_memory_at_a_time(judged):
    assert judged[1] == [0, 0]


def test_longppl_is_that_of_the_characters_that_the_evaluator_chose(model, judged, drawn):
    result = json.loads((judged[0] / "longppl.json").read_text())["lengths"]["100"]
    by_name = {texts_lib.digest(one): one for one in TEXTS}
    nats, keys = [], []
    for document in json.loads((judged[0] / "key_tokens.json").read_text())["documents"]:
        one, end = by_name[document["document"]], document["end"]
        assert document["tokens"] == 99 < end, "some tokens are of two letters"
        nats_T = their_nats(*model, one[:end], 1000)
        assert len(nats_T) == end
        nats += nats_T.tolist()
        keys += [nats_T[place] for begin, stop in document["spans"] for place in range(begin, stop)]
    drawn_lines = plotted.lines(drawn(judged[0] / "longppl.png"))
    assert drawn_lines == {"LongPPL": ([100], [result["longppl"]]), "perplexity": ([100], [result["perplexity"]])}
    assert result["documents"] == 3 and 5 < len(keys) < len(nats) / 2
    assert (result["key_tokens"], result["tokens"]) == (len(keys), len(nats))
    assert math.isclose(result["longppl"], math.exp(np.mean(keys)), rel_tol=1e-4)
    assert math.isclose(result["perplexity"], math.exp(np.mean(nats)), rel_tol=1e-4)


def test_key_tokens_of_a_file_are_those_of_its_evaluator(model, judged, text, tmp_path, monkeypatch):
    monkeypatch.chdir(text.parent)
    file = os.path.relpath(judged[0] / "key_tokens.json")
    result = run_longppl(model[1], text.name, tmp_path / "model/longppl", f"--key-tokens={file}")
    whole = json.loads((judged[0] / "longppl.json").read_text())
    assert result["evaluator"] == whole["evaluator"] and result["rule"] == whole["rule"]
    assert result["lengths"]["100"] == whole["lengths"]["100"] | {"too_short": None}
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    typed.assert_makes_the_same(longppl.main, tmp_path / "model/longppl/longppl.json")


def test_the_recorded_command_gives_the_same_longppl(judged, tmp_path, monkeypatch):
    out = shutil.copytree(judged[0], tmp_path / "longppl")
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    typed.assert_makes_the_same(longppl.main, out / "longppl.json")


def test_a_killed_longppl_goes_on_to_the_same_result(model, evaluator, judged, text, tmp_path):
    """In the middle of judging, and in the middle of measuring."""
    for lines in (2, 5):
        out, kept = killed(judged[0], tmp_path / str(lines), lines)
        run_longppl(model[1], text, out, f"--evaluator-hf={evaluator}", *LONGPPL)
        assert (out / "answers.jsonl").read_bytes().splitlines(keepends=True)[:lines] == kept
        assert typed.load(out / "longppl.json") == typed.load(judged[0] / "longppl.json")
        assert (out / "key_tokens.json").read_bytes() == (judged[0] / "key_tokens.json").read_bytes()


def test_another_length_stands_beside_the_first(model, evaluator, judged, text, tmp_path):
    """In the result and in the file of key tokens, which are of the same documents."""
    out = shutil.copytree(judged[0], tmp_path / "out")
    before = json.loads((out / "longppl.json").read_text())["lengths"]
    result = run_longppl(model[1], text, out, f"--evaluator-hf={evaluator}", *LONGPPL, "--lengths=90")
    assert result["lengths"]["100"] == before["100"] and list(result["lengths"]) == ["90", "100"]
    documents = json.loads((out / "key_tokens.json").read_text())["documents"]
    assert sorted(one["length"] for one in documents) == [90] * 3 + [100] * 3


def test_a_model_that_judges_itself_may_find_nothing(model, text, tmp_path, capsys):
    result = run_longppl(model[1], text, tmp_path, *LONGPPL[:-2], "--alpha=50")
    assert result["lengths"]["100"]["longppl"] is None
    assert result["lengths"]["100"]["perplexity"] > 1
    assert "no key tokens at length 100: LongPPL is not defined there" in capsys.readouterr().out


def test_a_document_within_the_short_context_has_no_key_token(model, tmp_path):
    text = tmp_path / "short.jsonl"
    text.write_text(json.dumps({"text": TEXTS[0]}) + "\n")
    options = ["--lengths=100", "--shortest=8", "--samples=1", "--short-context=64", "--stride=20"]
    found = run_longppl(model[1], text, tmp_path / "out", *options)["lengths"]["100"]
    assert (found["key_tokens"], found["tokens"]) == (0, len(TEXTS[0]))


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (perplexity, ["--hf={hf}", "--text={text}"], "none of the 6 documents of"),
        (
            perplexity,
            ["--hf={hf}", "--text={text}", "--lengths=300"],
            "--lengths: 300 is more than the model",
        ),
        (longppl, ["--hf={hf}", "--context=32768"], "all that ships: name longer documents with --text"),
        (perplexity, ["--hf={hf}", "--text=none.jsonl"], "--text: there is no file 'none.jsonl'"),
        (perplexity, ["--hf={hf}", "--text={bad}", "--lengths=50"], "bad.jsonl:2: text is missing or null"),
        (perplexity, ["--hf={hf}", "--text={hf}/config.json", "--lengths=50"], "config.json:1: not JSON"),
        (perplexity, ["--hf={hf}", "--text={mixed}", "--lengths=50"], "is files of 2 kinds (jsonl, text_folder)"),
        (perplexity, ["--hf={hf}", "--text={text}", "--lengths=50", "--last=50"], "leaves no room for --last=50"),
        (perplexity, ["--hf={hf}", "--text={text}", "--stride=5"], "--stride needs --window"),
        (perplexity, ["--hf={hf}", "--text={text}", "--window=8", "--stride=8"], "it must be from 1 to 7"),
        (perplexity, ["--hf={hf}", "--text={text}", "--window=512"], "--window=512 is more than the model's context"),
        (perplexity, ["--hf={hf}", "--rows=2"], "--rows is for --workdir without --text"),
        (perplexity, ["--workdir={hf}", "--samples=2"], "--samples is for --text"),
        (perplexity, [], "give one of --workdir"),
        (longppl, ["--hf={hf}", "--text={text}"], "--lengths: 256 has no token with a longer context than"),
        (
            longppl,
            ["--hf={hf}", "--text={text}", *LONGPPL, "--lengths=300"],
            "the model's context of 256; --context=N",
        ),
        (
            longppl,
            ["--hf={hf}", "--text={text}", *LONGPPL, "--lengths=300", "--evaluator-hf={hf}"],
            "more than the evaluator's context of 256; --evaluator-context=N allows more",
        ),
        (
            longppl,
            ["--hf={hf}", "--text={text}", *LONGPPL, "--lengths=120", "--evaluator-hf={evaluator}", "--context=119"],
            "of the model, more than its context of 119; --context=N allows more",
        ),
        (longppl, ["--hf={hf}", "--text={text}", "--evaluator-context=9"], "--evaluator-context needs"),
        (longppl, ["--hf={hf}", "--text={text}", "--key-tokens={text}"], "cannot be used: JSONDecodeError"),
        (longppl, ["--hf={hf}", "--text={text}", "--key-tokens=x", "--alpha=1"], "--alpha does not go with --key-tok"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_weight_is_read(
    script, arguments, message, model, evaluator, text, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("anchorjax.inference.language_model.load", None)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "abc"}\n{}\n')
    (tmp_path / "mixed").mkdir()
    shutil.copy(bad, tmp_path / "mixed/a.jsonl")
    (tmp_path / "mixed/b.txt").write_text("abc")
    places = {"hf": model[1], "evaluator": evaluator, "text": text, "bad": bad, "mixed": tmp_path / "mixed"}
    out = tmp_path / "out"
    assert script.main([*(argument.format(**places) for argument in arguments), f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()
