"""Models that no single process holds are scored, continued and converted as by one process with as many devices."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from anchorjax.checkpoints.huggingface.weights import Weights
from tests import xla
from tests.checkpoints.huggingface import tiny
from tests.evaluation.making import write_tokenizer
from tests.training.jobs import ROOT, finish, free_port

# Runs several commands, one after the other, in a process of the job.
PROGRAM = """
import json, sys
from anchorjax import cli
for argv in json.loads(sys.argv[1]):
    print("$", argv[0])
    assert cli.main(argv) == 0, argv
"""

# Runs a command in which a function of process 1, here of NAME, never returns.
STUCK = """
import os, pydoc, sys, time
from anchorjax import cli, processes
processes.STUCK_S, processes.SLOWEST = 20, 1e12
if os.environ["JAX_PROCESS_ID"] == "1":
    owner, _, name = sys.argv[1].rpartition(".")
    setattr(pydoc.locate(owner), name, lambda *_, **__: time.sleep(600))
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Hugging Face model."""
    directory = tmp_path_factory.mktemp("model")
    tiny.make("llama untied", directory)
    write_tokenizer(directory)
    return directory


def start(commands: list[list[list]], environ: dict[str, str], devices: int) -> list[subprocess.Popen]:
    """A process for each list of commands."""
    return launch(
        [[PROGRAM, json.dumps([list(map(str, argv)) for argv in some])] for some in commands], environ, devices
    )


def launch(programs: list[list], environ: dict[str, str], devices: int) -> list[subprocess.Popen]:
    """A process for each program, with its arguments behind it."""
    env, pipes = os.environ | {"XLA_FLAGS": xla.flags(devices)} | environ, {"stdout": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(
            [sys.executable, "-c", *map(str, program)],
            cwd=ROOT,
            env=env | ({"JAX_PROCESS_ID": str(index)} if environ else {}),
            stderr=subprocess.PIPE,
            **pipes,
        )
        for index, program in enumerate(programs)
    ]


def run(commands: list[list], count: int) -> list[str]:
    """What each process of a job with four devices printed."""
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    started = start([commands] * count, job if count > 1 else {}, 4 // count)
    try:
        said = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), [err[-3000:] for _, err in said]
    # Gloo's threads tell of their connections on stdout, at times both in one line.
    return [
        "".join(line for line in out.splitlines(True) if not re.search(r"\[Gloo\]|peer ranks", line)) for out, _ in said
    ]


def answers(out) -> list[dict]:
    lines = map(json.loads, (out / "answers.jsonl").read_text().splitlines())
    return [line for line in lines if "score" in line]


def assert_close(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_close(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_close(*pair)
    elif isinstance(one, float):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    else:
        assert one == other


def assert_same_answers(out, *tasks: str) -> None:
    for task in tasks:
        assert_close(answers(out / "two" / task), answers(out / "one" / task))


def test_two_processes_answer_as_one(model, tmp_path):
    def ask(out):
        few = ["--lengths=64", "--samples=2", "--batch-size=2"]
        return [
            ["evaluate", "perplexity", f"--hf={model}", *few, f"--out={out}/p"],
            ["generate", f"--hf={model}", "--prompt=Once", "--prompt=Twice", "--batch-size=2", "--max-new-tokens=8"],
        ]

    there, back = tmp_path / "ours", tmp_path / "theirs"
    convert = [["convert", "from-hf", model, there], ["convert", "to-hf", there, back]]
    (expected,) = run(ask(tmp_path / "one"), count=1)
    said = run([*ask(tmp_path / "two"), *convert], count=2)
    assert said[0].replace("/two/", "/one/").startswith(expected)
    assert said[1] == "$ evaluate\n$ generate\n$ convert\n$ convert\n", "process 0 alone prints"
    assert_same_answers(tmp_path, "p")
    weights, ours = Weights.open(model), Weights.open(back)
    assert weights.tensors.keys() == ours.tensors.keys()
    assert all(np.array_equal(ours.read(name), weights.read(name)) for name in weights.tensors)


@pytest.mark.slow
def test_every_task_runs_in_two_processes(model, jobs, tmp_path):
    jobs.run(tmp_path / "run", "--config.train.steps=2")

    def commands(out):
        hf, long = f"--hf={model}", ["--lengths=1536", "--context=1536"]
        rope = ["--tokens=64", "--lengths=32,100", "--samples=1", "--shifts=0,16", "--precisions=bf16-phases32"]
        rope.append("--document-tokens=30")
        return [
            ["evaluate", "needle", hf, "--lengths=576", "--context=576", "--depths=2", f"--out={out}/needle"],
            ["evaluate", "ruler", hf, "--tasks=vt", *long, "--samples=1", f"--out={out}/vt"],
            ["evaluate", "rope_precision", hf, *rope, f"--out={out}/rope"],
            ["evaluate", "longppl", hf, "--lengths=256", "--samples=2", "--short-context=32", f"--out={out}/longppl"],
            ["evaluate", "perplexity", f"--workdir={tmp_path}/run", f"--out={out}/held_out"],
        ]

    run(commands(tmp_path / "one"), count=1)
    run(commands(tmp_path / "two"), count=2)
    assert_same_answers(tmp_path, "needle", "vt", "longppl", "held_out")
    assert (tmp_path / "two/rope/rope_precision.json").exists()  # rounding in bfloat16 differs by the mesh's sums


def test_processes_that_are_asked_different_things_end_in_one_line(model):
    commands = [[["generate", f"--hf={model}", f"--prompt={text}"]] for text in ("Once", "Twice")]
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    started = start(commands, job, devices=1)
    for process in started:
        _, err = process.communicate(timeout=100)
        assert process.returncode == 2 and err.count("anchorjax generate: ") == 1
        assert "the job's processes differ in the command: 0 has" in err and "Traceback" not in err


READS, CHECKPOINTS = "anchorjax.checkpoints.huggingface.checkpoint.load", "anchorjax.checkpoints.orbax.Checkpoints"


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize(
    ("command", "stuck"),
    [
        (["generate", "--hf=MODEL", "--prompt=Once"], READS),
        (["generate", "--hf=MODEL", "--prompt=Once"], "anchorjax.inference.generation.Generator._laid_out"),
        (["evaluate", "perplexity", "--hf=MODEL", "--lengths=64", "--samples=2", "--out=OUT/p"], READS),
        (["evaluate", "perplexity", "--workdir=RUN", "--out=OUT/p"], f"{CHECKPOINTS}.restore_latest"),
        (["convert", "from-hf", "MODEL", "OUT/ours"], f"{CHECKPOINTS}.save"),
        (["convert", "to-hf", "RUN", "OUT/theirs"], f"{CHECKPOINTS}.restore_weights"),
        (["convert", "to-hf", "RUN", "OUT/theirs"], "anchorjax.checkpoints.huggingface.checkpoint._take"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_a_process_that_is_stuck_ends_all(model, jobs, tmp_path, command, stuck):
    """Within 20 s and the 2 s by which process 0 leaves later, after the start."""
    if any("RUN" in word for word in command):
        jobs.run(tmp_path / "run", "--config.train.steps=2")
    places = {"MODEL": model, "OUT": tmp_path, "RUN": tmp_path / "run"}
    command = [re.sub("MODEL|OUT|RUN", lambda match: str(places[match[0]]), word) for word in command]
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    since, started = time.monotonic(), launch([[STUCK, stuck, *command]] * 2, job, devices=2)
    said = finish(started, expect=None, timeout=200)
    assert time.monotonic() - since < 120
    assert "Timeout (0:00:20" in said[1] and "in <lambda>" in said[1]
    assert not (tmp_path / "ours").exists() and not (tmp_path / "theirs").exists()
