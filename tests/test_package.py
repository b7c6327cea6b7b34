"""The project as a wheel: what is in it, what it asks for, and that its program trains from any directory."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import anchorjax

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", *(file.name for file in ROOT.glob("requirements*.txt")))
FOLDERS = ("anchorjax", "configs", "eval", "benchmarks", "tests")
EXTRAS = {"eval", "test", "beam", "compilers", "cuda13", "tpu"}


def pip(*arguments: str | Path, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, without network: the environment's own setuptools does it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", f"--wheel-dir={out}", source, cwd=out)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """Where the wheel is installed, with its program in bin/. Libraries are those of the environment."""
    directory = tmp_path_factory.mktemp("site")
    pip("install", "--no-index", "--no-deps", f"--target={directory}", wheel, cwd=directory)
    return directory


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def requirements(*files: str) -> set[tuple]:
    lines = (line.partition(" #")[0].strip() for file in files for line in (ROOT / file).read_text().splitlines())
    return {fields(line) for line in lines if line and not line.startswith("#")}


def fields(requirement: str) -> tuple:
    """What it says, whatever the order and the spaces."""
    one = Requirement(requirement)
    return one.name, frozenset(one.extras), one.specifier, str(one.marker)


def test_all_code_recipes_templates_and_the_corpus_are_inside_and_nothing_else(wheel):
    """A template or corpus that is added to the package, and not to what a wheel carries, fails here."""
    own = {file.relative_to(ROOT) for file in (ROOT / "anchorjax").rglob("*") if file.is_file()}
    own |= {Path("anchorjax") / file.relative_to(ROOT) for file in (ROOT / "configs").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        licence = archive.read(f"anchorjax-{anchorjax.__version__}.dist-info/licenses/LICENSE")
    assert inside == {str(file) for file in own if "__pycache__" not in file.parts}
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_it_asks_for_what_the_requirements_files_say(wheel):
    asked = metadata(wheel)
    assert asked["Version"] == anchorjax.__version__
    assert asked["License-Expression"] == "Apache-2.0"
    assert set(asked.get_all("Provides-Extra")) == EXTRAS
    found = asked.get_all("Requires-Dist")
    assert {fields(one) for one in found if "extra ==" not in one} == requirements("requirements.txt")
    files = {name: [f"requirements-{name}.txt"] for name in EXTRAS}
    files["test"] += ["requirements-core.txt", "requirements-eval.txt"]
    for name, some in files.items():
        of_extra = (one for one in found if f'extra == "{name}"' in one)
        plain = (one.replace(f' and extra == "{name}"', "").replace(f'; extra == "{name}"', "") for one in of_extra)
        assert {fields(one) for one in plain} == requirements(*some), name


def test_its_program_trains_from_any_directory(site, tmp_path):
    """The installed package alone: neither this directory nor the checkout is where Python looks."""
    environ = os.environ | {"PYTHONPATH": str(site)}
    arguments = ["train", "--config=quickstart", "--workdir=run", "--config.train.steps=1"]
    arguments += ["--config.data.seq_len=256", "--config.data.batch_size=8", f"--config.data.data_dir={tmp_path}/data"]
    arguments += ["--config.eval.final_rows=8"]
    command = [site / "bin" / "anchorjax", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "commands.json").read_text().count("anchorjax train --config=quickstart") == 1
    where = "import anchorjax; print(anchorjax.__file__)"
    done = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.stdout.strip() == str(site / "anchorjax" / "__init__.py")


def test_no_file_changes_where_python_looks_for_the_project():
    word = "sys.path." + "insert"
    files = [ROOT / "train.py", *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]
    assert [str(file.relative_to(ROOT)) for file in files if word in file.read_text()] == []
