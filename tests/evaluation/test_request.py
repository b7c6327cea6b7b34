"""What a record says of a checkpoint: the same for copies on other machines, another one once its weights change."""

import json
import os

import pytest

from anchorjax.errors import EvaluationError
from anchorjax.evaluation import options
from anchorjax.evaluation.record import Record
from anchorjax.inference import language_model
from tests.checkpoints.huggingface import tiny
from tests.evaluation.making import write_tokenizer

DAY = 86400 * 10**9


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model whose weights count as large, from 1 KiB on, and are sampled every 2 KiB."""
    directory = tmp_path / "model"
    tiny.make("llama untied", directory)
    write_tokenizer(directory)
    for name, size in {"_SMALL": 2**10, "_SAMPLE": 2**6, "_STRIDE": 2**11}.items():
        monkeypatch.setattr(options, name, size, raising=False)
    return language_model.describe(hf=directory)


def touch(model, days: int) -> None:
    """Sets the times of all files."""
    for file in model.directory.iterdir():
        os.utime(file, ns=(days * DAY, days * DAY))


def record(out, model):
    request = options.request(model, seed=1)
    return Record(out, request, lambda: options.earlier_request(request, model))


def answer(out, request) -> None:
    with Record(out, request) as one:
        one.begin("typed", {}, [])
        one.add([{"task": "t", "length": 1, "index": 0, "score": 1.0, "weights_id": "w"}])


def test_a_copy_of_another_time_is_the_same_request(model):
    touch(model, 10)
    before = options.request(model)
    touch(model, 11)
    assert options.request(model) == before


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_other_weights_of_the_same_size_and_time_are_another_request(model, place):
    touch(model, 10)
    before = options.request(model)
    file = model.directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    first = int(place * len(content))
    for byte in range(first, first + 2**11):  # as long as the stretch of which a sample is taken
        content[byte] ^= 1
    file.write_bytes(content)
    touch(model, 10)
    assert options.request(model)["files"] != before["files"]


def test_answers_of_a_version_that_knew_times_go_on_and_are_renewed(model, tmp_path):
    touch(model, 10)
    earlier = options.earlier_request(options.request(model, seed=1), model)
    assert earlier != options.request(model, seed=1)
    answer(tmp_path / "out", earlier)
    before = (tmp_path / "out/answers.jsonl").read_text().splitlines()
    for day in (10, 11):  # with the request renewed, times no longer count
        touch(model, day)
        with record(tmp_path / "out", model) as one:
            assert len(one.answers) == 1
            with pytest.raises(EvaluationError, match="another process is writing into"):
                record(tmp_path / "out", model)
        first, *lines = (tmp_path / "out/answers.jsonl").read_text().splitlines()
        assert json.loads(first) == options.request(model, seed=1) and lines == before[1:]


def test_answers_of_a_version_that_knew_other_times_are_refused_in_one_line(model, tmp_path):
    touch(model, 10)
    answer(tmp_path / "out", options.earlier_request(options.request(model, seed=1), model))
    before = (tmp_path / "out/answers.jsonl").read_text()
    touch(model, 11)
    with pytest.raises(EvaluationError, match=r"holds answers to another request \(files: '\w+' -> '\w+'\); give anot"):
        record(tmp_path / "out", model)
    assert (tmp_path / "out/answers.jsonl").read_text() == before


def test_times_are_told_as_that_version_told_them(tmp_path, monkeypatch):
    """The digest that it wrote for these files."""
    monkeypatch.setattr(options, "_SMALL", 50)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(100)))
    os.utime(tmp_path / "model.safetensors", ns=(10**18, 17 * 10**17))

    class Model:
        files, directory, is_run = None, tmp_path, False

    assert options.earlier_request({}, Model) == {"files": GOLDEN}


GOLDEN = "c88ce11a4f38af636cf7cbf8f492cf78b276d2cdca59a666134f46b0ae25442f"
