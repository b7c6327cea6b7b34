"""Programs that load a checkpoint say once that a GPU or TPU lies idle. Which one it is, is tested in tests/cli."""

import pytest

from anchorjax import accelerators
from anchorjax.cli import generate
from eval import perplexity


@pytest.fixture
def idle(monkeypatch):
    """A machine with a TPU that JAX does not use, in a process that has not said so yet."""
    monkeypatch.setattr(accelerators, "unused", lambda backend, environ: f"a TPU lies idle, JAX uses the {backend}")
    accelerators.warn_if_unused.cache_clear()
    yield
    accelerators.warn_if_unused.cache_clear()


def test_generation_warns_once(idle, directory, capfd):
    for _ in range(2):  # checkpoints of one process
        assert generate.main([f"--hf={directory}", "--prompt=a", "--max-new-tokens=1"]) == 0
    out, err = capfd.readouterr()
    assert err.splitlines().count("warning: a TPU lies idle, JAX uses the cpu") == 1 and "warning" not in out


def test_an_evaluation_warns_once(idle, directory, tmp_path, capfd):
    (tmp_path / "text.txt").write_text("a b c " * 40)
    arguments = [f"--hf={directory}", f"--text={tmp_path / 'text.txt'}", "--lengths=64", f"--out={tmp_path / 'out'}"]
    assert perplexity.main(arguments) == 0
    out, err = capfd.readouterr()
    assert err.splitlines().count("warning: a TPU lies idle, JAX uses the cpu") == 1 and "warning" not in out
