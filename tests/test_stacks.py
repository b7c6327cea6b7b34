"""The Python chooses the stack: which environment the Makefile takes, and that a stack's parts fit together."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(ROOT.glob("requirements*.txt"))


def python(file: pathlib.Path, version: str) -> pathlib.Path:
    """A program that answers `make` as a Python of this version; "" does not run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\necho {version}\n" if version else "#!/bin/sh\nexit 1\n")
    file.chmod(0o755)
    return file


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(
    ("made", "asked", "said"),
    [
        (None, "3.11", None),
        (None, "3.14", None),
        ("3.13", "3.13", None),
        ("3.11", "3.13", "is Python 3.11 and PYTHON={python} is 3.13: add VENV=.venv-3.13"),
        ("", "3.13", "does not run: remove "),
        (None, "3.10", "PYTHON={python} is Python 3.10; allowed: 3.11 to 3.14"),
        ("3.11", "3.15", "PYTHON={python} is Python 3.15; allowed: 3.11 to 3.14"),
        (None, "", "PYTHON={python} does not run"),
    ],
)
def test_make_refuses_another_python_s_environment(tmp_path, made, asked, said):
    if made is not None:
        python(tmp_path / "venv" / "bin" / "python", made)
    program = python(tmp_path / "python", asked)
    command = ["make", "asked", f"PYTHON={program}", f"VENV={tmp_path / 'venv'}"]
    env = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}  # of a `make test` around this
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) == (said is None), done.stderr
    if said is not None:
        assert said.format(python=program) in done.stderr.splitlines()[0]


def required(python_version: str) -> dict[str, Requirement]:
    """What all requirements files together ask for on this Python, by package."""
    found = {}
    for line in "\n".join(file.read_text() for file in FILES).splitlines():
        text = line.split(" #")[0].strip()
        if not text or text.startswith(("#", "-r")):
            continue
        requirement = Requirement(text)
        if requirement.extras and not requirement.specifier:
            continue  # jax[cuda13]: more of a package whose range stands in requirements.txt
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python_version}):
            one_range = found.setdefault(requirement.name, requirement)
            assert one_range.specifier == requirement.specifier, f"{requirement.name} has two ranges"
    return found


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_each_python_has_one_range_of_each_package(version):
    packages = required(version)
    assert {"jax", "flax", "libtpu", "tokamax", "jax-cuda13-plugin", "jax-cuda13-pjrt"} <= set(packages)
    plugin, pjrt = (str(packages[f"jax-cuda13-{part}"].specifier) for part in ("plugin", "pjrt"))
    assert plugin == pjrt and packages["jax"].specifier.contains(plugin.removeprefix("=="))


def test_the_compilers_are_those_that_the_installed_jax_asks_for():
    packages = required(".".join(map(str, sys.version_info[:2])))
    asked = [Requirement(text) for text in importlib.metadata.requires("jax")]
    libtpu = next(one for one in asked if one.name == "libtpu" and one.marker.evaluate({"extra": "tpu"}))
    assert packages["libtpu"].specifier == libtpu.specifier
    assert packages["jax-cuda13-plugin"].specifier.contains(importlib.metadata.version("jaxlib"))
