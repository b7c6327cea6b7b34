"""Who may import whom, how long a file may be, and that importing does nothing."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "anchorjax"
FILES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = [file for file in sorted(ROOT.rglob("*.py")) if not file.relative_to(ROOT).parts[0].startswith(".")]
FOUNDATION = {"types", "errors", "parsing", "config", "masks", "sharding", "precision", "processes", "launch"}
FOUNDATION.add("compiler_flags")
# What each part of the package may import of the package, beside itself.
ALLOWED = {
    "__init__": set(),
    "types": set(),
    "errors": set(),
    "parsing": set(),
    "files": set(),
    "background": set(),
    "accelerators": set(),
    "precision": set(),
    "compiler_flags": {"errors"},
    "masks": {"types"},
    "config": {"errors", "files", "types"},
    "sharding": {"types"},
    "processes": {"errors", "sharding"},
    "launch": {"errors", "processes"},
    "targets": {"errors"},
    "attention": FOUNDATION,
    "models": FOUNDATION | {"attention"},
    "data": FOUNDATION | {"files", "background"},
    "checkpoints": FOUNDATION | {"models", "data", "files"},
    "training": FOUNDATION | {"attention", "models", "data", "checkpoints", "files"},
    "inference": FOUNDATION | {"accelerators", "attention", "models", "data", "checkpoints", "files"},
    "evaluation": FOUNDATION | {"inference", "training", "data", "checkpoints", "files", "pages", "background"},
    "experiments": FOUNDATION | {"attention", "models", "data", "inference", "evaluation", "pages", "files"},
    "plan": FOUNDATION
    | {"attention", "models", "data", "checkpoints", "training", "pages", "files", "targets", "background"},
    "pages": FOUNDATION | {"attention", "data", "evaluation", "training", "files"},
    "cli": FOUNDATION
    | {"accelerators", "models", "data", "checkpoints", "training", "inference", "evaluation", "pages"}
    | {"plan", "targets"},
    "__main__": {"cli"},
}
OUTSIDE = {"configs", "train", "eval", "tests", "benchmarks"}


def name_of(file: pathlib.Path) -> str:
    return str(file.relative_to(ROOT))


def imports(file: pathlib.Path) -> set[str]:
    """Dotted names that a file imports, wherever in it; `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts_imported(file: pathlib.Path) -> set[str]:
    names = [name.split(".") for name in imports(file)]
    return {name[1] for name in names if name[0] == "anchorjax" and len(name) > 1}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_downward(file):
    part = "__main__" if file.name == "__main__.py" else file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in ALLOWED, f"{part} is new: say in this test what it may import"
    assert parts_imported(file) <= ALLOWED[part] | {part}
    assert not {name.split(".")[0] for name in imports(file)} & OUTSIDE


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("ml_collections", {"config/recipes.py", "config/overrides.py"}),
        ("orbax", {"checkpoints/orbax.py"}),
        ("etils", {"training/bucket.py"}),
        ("safetensors", {"checkpoints/huggingface/weights.py"}),
        ("tokenizers", {"data/text/tokenizer.py"}),
        ("jinja2", {"data/text/chat.py", "data/text/marks.py", "pages/page.py"}),
        ("pyarrow", {"data/sources/jsonl.py", "data/sources/tables.py"}),
        ("array_record", {"data/sources/array_record.py"}),
        ("apache_beam", {"data/store/beam.py"}),
        ("matplotlib", {"pages/figures.py"}),
        ("rouge", {"evaluation/tasks/longbench/metrics.py"}),
        ("jieba", {"evaluation/tasks/longbench/metrics.py"}),
        ("lm_eval", {"evaluation/tasks/harness.py", "evaluation/tasks/lm_eval_model.py"}),
        ("optax", {"training/moments.py", "training/optimizer.py", "training/state.py", "training/step.py"}),
    ],
)
def test_library_is_known_to_its_owners_only(library, owners):
    users = {str(file.relative_to(PACKAGE)) for file in FILES if library in {n.split(".")[0] for n in imports(file)}}
    assert users == owners


def makes_partition_specs(file: pathlib.Path) -> bool:
    names = {"PartitionSpec", "jax.P", "jax.sharding.PartitionSpec"}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in ("jax", "jax.sharding"):
            names |= {alias.asname for alias in node.names if alias.name in ("P", "PartitionSpec") and alias.asname}
            names |= {alias.name for alias in node.names if alias.name == "P"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            return True
    return False


def test_partition_specs_are_made_in_one_table():
    assert {name_of(file) for file in FILES if makes_partition_specs(file)} == {"anchorjax/sharding.py"}


def test_there_are_no_drawers_for_odds_and_ends():
    assert not [file for file in ALL_FILES if file.stem in ("utils", "util", "helpers", "misc")]


@pytest.mark.parametrize("file", ALL_FILES, ids=name_of)
def test_file_is_at_most_400_lines(file):
    assert len(file.read_text().splitlines()) <= 400


def test_importing_has_no_side_effects(tmp_path):
    """No flags, signal handlers, root-logger handlers, devices or files come from an import."""
    modules = [str(file.relative_to(ROOT).with_suffix("")).replace("/", ".") for file in FILES]
    modules = [module.removesuffix(".__init__") for module in modules]
    code = f"""
import importlib, logging, os, signal, sys
import jax, grain, orbax.checkpoint, tensorboardX, tensorflow_datasets  # what they do is not ours
from absl import flags
state = lambda: (
    [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)], list(flags.FLAGS), logging.root.level,
    list(logging.root.handlers), dict(os.environ), os.listdir("."), jax.config.values)
before = state()
for module in {modules!r}:
    importlib.import_module(module)
assert state() == before, (before, state())
assert not jax._src.xla_bridge.backends_are_initialized()
"""
    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""
