"""The recipes' docstrings name targets with memory, step and MFU: those of benchmarks/plans.py, and of a new plan."""

import json
import re
import subprocess
import sys

import pytest

from anchorjax.plan.command import flags
from benchmarks import plans
from tests.compilers import require_compiler
from tests.training.jobs import ROOT
from tests.training.test_recipes_lower import RECIPES, docstring

# "64 TPU v5p (v5p:4x4x4): 30.2 GB, 4.3 s, 41%", perhaps with flags in front of the colon.
LINE = re.compile(r"^\d+ (?:TPU )?\w+ \((\w+:\w+)\)(?: with ([^:]*))?: ([\d.]+) GB, ([\d.]+) s, (\d+)%", re.MULTILINE)
PAPER = [recipe for recipe in RECIPES if LINE.search(docstring(recipe))]
ANCHOR = [recipe for recipe in PAPER if recipe.endswith("_anchor")]


@pytest.mark.parametrize("recipe", ANCHOR)
def test_figures_of_a_docstring_are_those_of_the_table(recipe):
    planned = {}
    for row in plans.read(plans.OUT).values():
        keys, plan = " ".join(flags(plans.ROWS[row["name"]].changes)), row["plan"]
        figures = f"{plan['hbm_bytes'] / 1e9:.1f}", f"{plan['step_seconds']:.1f}", f"{100 * plan['mfu']:.0f}"
        planned[row["recipe"], row["target"], keys] = figures
    found = {(recipe, target, keys): tuple(figures) for target, keys, *figures in LINE.findall(docstring(recipe))}
    assert len(found) >= 2
    assert found.items() <= planned.items()


TARGETS = [
    pytest.param(recipe, *line[:3], id=f"{recipe}-{line[0]}{'-with-flags' * bool(line[1])}")
    for recipe in PAPER
    for line in LINE.findall(docstring(recipe))
    if recipe in ANCHOR or ":8" in line[0]  # another mask changes neither weights nor activations: GPUs are enough
]


@pytest.mark.slow  # one to five minutes each on two cores
@pytest.mark.parametrize(("recipe", "target", "keys", "gigabytes"), TARGETS)
def test_a_recipe_fits_its_targets(recipe, target, keys, gigabytes):
    require_compiler(target.partition(":")[0])
    command = [sys.executable, "-m", "anchorjax", "plan", f"--config={recipe}", f"--target={target}", *keys.split()]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    plan = json.loads(done.stdout)
    assert plan["fits_as_given"]
    assert plan["hbm_bytes"] / 1e9 == pytest.approx(float(gigabytes), rel=0.02)
