"""The commands in errors for what is missing install the right versions, in a clone and from a wheel."""

import pathlib

import pytest
from packaging.requirements import Requirement

from anchorjax import errors, targets

FILE = pathlib.Path(__file__).parents[1] / "requirements-compilers.txt"


def test_the_command_for_an_extra_is_true_of_a_clone_and_of_a_wheel(tmp_path):
    assert errors.install_extra("eval") == f"python -m pip install -r {FILE.with_name('requirements-eval.txt')}"
    assert errors.install_extra("eval", tmp_path) == 'python -m pip install "anchorjax[eval]"'


def test_the_command_for_compilers_is_true_of_a_clone_and_of_a_wheel(tmp_path, monkeypatch):
    assert errors.compilers() == ["-r", str(FILE)]
    assert f"/compilers -r {FILE}" in str(errors.MissingCompiler("v5p"))
    lines = [line.partition("#")[0].strip() for line in FILE.read_text().splitlines()]
    wanted = [one for one in map(Requirement, filter(None, lines)) if one.marker is None or one.marker.evaluate()]
    metadata = ["Metadata-Version: 2.4", "Name: anchorjax", "Version: 0", "Requires-Dist: jax>=0"]
    for one in map(Requirement, filter(None, lines)):
        marker = f'{one.marker} and extra == "compilers"' if one.marker else 'extra == "compilers"'
        metadata.append(f"Requires-Dist: {one.name}{one.specifier}; {marker}")
    (tmp_path / "anchorjax-0.dist-info").mkdir()
    (tmp_path / "anchorjax-0.dist-info" / "METADATA").write_text("\n".join(metadata) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = errors.compilers(tmp_path / "requirements-compilers.txt")  # as beside an installed wheel
    assert sorted(found) == sorted(f"{one.name}{one.specifier}" for one in wanted) and len(found) == 5


def test_a_gpu_compiler_is_missing_where_no_plugin_is_installed(monkeypatch):
    def find_spec(name):
        raise ModuleNotFoundError(f"No module named {name.partition('.')[0]!r}")

    monkeypatch.setattr(targets.importlib.util, "find_spec", find_spec)
    with pytest.raises(errors.MissingCompiler, match="the compiler for h100 is missing: python"):
        targets.devices("h100")
