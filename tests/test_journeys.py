"""Extensions touch one file and one key: with the files of journeys/ in a copy of the package, they are what runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import anchorjax
from tests import tiny, xla

ROOT = Path(anchorjax.__file__).parent
JOURNEYS = Path(__file__).parent / "journeys"
FILES = {
    "every_other.py": "data/rows/positions/skipping",
    "doubled.py": "training/objectives",
    "nope.py": "models/variants",
    "replicate.py": "attention/parallel",
    "toy.py": "models/families",
    "words.py": "evaluation/tasks",
}
KEYS = {
    "data__positions": "every_other",
    "train__objective": "doubled",
    "attention__variant": "nope",
    "mesh__context_strategy": "replicate",
    "model__family": "toy",
}
COMMAND = '\n    "words": ("perplexity of one sentence", f"{__name__}.tasks.words"),'

# Trains one step with all of them on two devices, exports it and evaluates it; prints which of the new code was called.
PROGRAM = """
import json, pathlib, sys
import anchorjax
from anchorjax import cli
from anchorjax.attention.parallel import STRATEGIES
from anchorjax.data.rows.positions import POSITIONS
from anchorjax.models.variants import VARIANTS
from anchorjax.training.objectives import OBJECTIVES

called = set()

def watched(name, function):
    def call(*arguments, **named):
        called.add(name)
        return function(*arguments, **named)
    return call

POSITIONS["every_other"] = watched("every_other", POSITIONS["every_other"])
OBJECTIVES["doubled"] = watched("doubled", OBJECTIVES["doubled"])
VARIANTS["nope"].contexts = watched("nope", VARIANTS["nope"].contexts)
STRATEGIES["replicate"].apply = watched("replicate", STRATEGIES["replicate"].apply)
assert cli.main(["train", "--config=./tiny.py", "--workdir=run", "--config.data.data_dir=data"]) == 0
assert cli.main(["convert", "to-hf", "run", "exported"]) == 0
assert cli.main(["evaluate", "words", "--workdir=run", "--out=scores"]) == 0
found = {"called": sorted(called), "package": anchorjax.__file__}
found["exported"] = json.loads(pathlib.Path("exported/config.json").read_text())["architectures"]
found["scores"] = json.loads(pathlib.Path("scores/words.json").read_text())["perplexity"]
pathlib.Path("found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The package with the new files, and with one key more for the task."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT, site / "anchorjax", ignore=shutil.ignore_patterns("__pycache__"))
    for name, folder in FILES.items():
        assert not (site / "anchorjax" / folder / name).exists()
        shutil.copy(JOURNEYS / name, site / "anchorjax" / folder)
    tasks = site / "anchorjax" / "evaluation" / "__init__.py"
    head, table, rest = tasks.read_text().partition("COMMANDS = {")
    tasks.write_text(head + table + COMMAND + rest)
    return site


def python(site: Path, directory: Path, program: str) -> str:
    environ = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags(num_devices=2)}
    command = [sys.executable, "-B", "-c", program]
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_one_file_and_one_key_are_all_that_a_run_needs(site, tmp_path):
    keys = KEYS | {"data__max_position": 100, "mesh__context": 2, "mesh__fsdp": 1, "train__steps": 1}
    tiny.write_file(tmp_path / "tiny.py", **keys, model__qk_norm=True, model__scale_embeddings=True)
    out = python(site, tmp_path, PROGRAM)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["package"] == str(site / "anchorjax" / "__init__.py")
    assert found["called"] == ["doubled", "every_other", "nope", "replicate"]
    assert found["exported"] == ["ToyForCausalLM"]
    assert f"perplexity {found['scores']:.1f}" in out


def test_the_configuration_knows_names_without_importing_what_they_name(site, tmp_path):
    program = """
import sys
from anchorjax.config import base, resolve
from anchorjax.errors import ConfigError
for key, new in (("data.positions", "every_other"), ("train.objective", "doubled"), ("attention.variant", "nope"),
                 ("mesh.context_strategy", "replicate")):
    config = base().to_dict()
    section, name = key.split(".")
    config[section][name] = "no_such"
    try:
        resolve(config)
    except ConfigError as error:
        assert key in str(error) and "no_such" in str(error) and new in str(error), error
    else:
        raise AssertionError(key)
imported = {name.split(".")[1] for name in sys.modules if name.startswith("anchorjax.")}
assert imported == {"config", "errors", "files", "types"}, imported
"""
    python(site, tmp_path, program)
