"""Recipes: found by name or path, one starting from another, and what each resolves to."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from anchorjax.config import base, recipe, recipes, resolve
from anchorjax.errors import UsageError
from configs import common
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
SIZES = {"llama2_7b_64k", "llama3_8b_128k", "mistral_7b_128k", "qwen15_18b_128k"}


def test_shipped_recipes():
    families = {f"{name}_{mask}" for name in SIZES for mask in ("anchor", "full", "intra_doc")}
    assert set(recipes.shipped()) >= families | {"quickstart", "smollm2_135m_anchor"}


@pytest.mark.parametrize("name", recipes.shipped())
def test_recipe_resolves_and_round_trips_through_json(name):
    config = resolve(recipe(name).to_dict())
    assert resolve(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", sorted(SIZES))
@pytest.mark.parametrize("mask", ["full", "intra_doc"])
def test_baseline_differs_from_its_anchor_recipe_in_the_mask_alone(name, mask):
    anchor, other = recipe(f"{name}_anchor").to_dict(), recipe(f"{name}_{mask}").to_dict()
    assert anchor["data"].pop("mask") == "anchor" and other["data"].pop("mask") == mask
    assert anchor == other


def test_installed_package_has_its_own_folder_first(tmp_path, monkeypatch):
    """A wheel has the recipes in anchorjax/configs; a folder named configs beside it belongs to another package."""
    package, beside = tmp_path / "anchorjax/configs", tmp_path / "configs"
    for folder, seed in ((package, 1), (beside, 2)):
        folder.mkdir(parents=True)
        tiny.write_file(folder / "mine.py", seed=seed)
    monkeypatch.setattr(recipes, "FOLDERS", (package, beside))
    assert recipe("mine").seed == 1
    monkeypatch.setattr(recipes, "FOLDERS", (tmp_path / "none", beside))
    assert recipe("mine").seed == 2
    assert recipes.FOLDERS[1:] == (beside,) and set(recipes.shipped()) == {"mine"}


def test_path_is_of_the_calling_recipe(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    tiny.write_file(tmp_path / "deep/first.py", seed=5)
    text = "from anchorjax.config import recipe\n\n\ndef get_config():\n    config = recipe({!r})\n"
    (tmp_path / "deep/second.py").write_text(
        text.format("first.py") + "    config.train.steps = 9\n    return config\n"
    )
    (tmp_path / "third.py").write_text(text.format("deep/second.py") + "    return config\n")
    monkeypatch.chdir("/")
    config = resolve(recipes.load(str(tmp_path / "third.py")).to_dict())
    assert config == tiny.config(seed=5, train__steps=9)


def test_error_names_the_file_that_raised_it(tmp_path):
    (tmp_path / "bad.py").write_text("def get_config():\n    raise ValueError('two\\nboom')\n")
    (tmp_path / "outer.py").write_text("from anchorjax.config import recipe\nget_config = lambda: recipe('bad.py')\n")
    with pytest.raises(UsageError) as caught:
        recipes.load(str(tmp_path / "outer.py"))
    assert str(caught.value) == f"the recipe {tmp_path / 'bad.py'} cannot be loaded: boom"


@pytest.mark.parametrize("line", ["config.data.row_length = 64", "config.update(data={'row_length': 64})"])
def test_old_name_in_a_recipe_names_the_new_one(tmp_path, line):
    text = "from anchorjax.config import base\n\n\ndef get_config():\n    config = base()\n"
    (tmp_path / "old.py").write_text(f"{text}    {line}\n    return config\n")
    with pytest.raises(UsageError, match=r"old.py cannot be loaded: data.row_length is now data.seq_len$"):
        recipes.load(str(tmp_path / "old.py"))


def run_elsewhere(cwd, code, path):
    """Runs code in another directory, with one more to import from."""
    env = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_shipped_recipe_from_any_directory(tmp_path):
    code = "from anchorjax.config import recipe; print(recipe('llama3_8b_128k_full').data.mask)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "full\n", done.stderr


def test_recipes_of_users_that_say_common():
    assert common.base().to_dict() == base().to_dict() == common.defaults()
    config = common.paper("llama3_8b", "checkpoints/Meta-Llama-3-8B", seq_len=131072, theta=1e7)
    assert config.to_dict() == recipe("llama3_8b_128k_anchor").to_dict()


def test_recipe_that_says_common_outside_of_the_repository_is_told_what_to_say(tmp_path):
    (tmp_path / "mine.py").write_text("from configs import common\n")
    code = f"from anchorjax.config import recipe; recipe({str(tmp_path / 'mine.py')!r})"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "anchorjax").symlink_to(ROOT / "anchorjax")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert "No module named 'configs'; take base() and recipe() from anchorjax.config" in done.stderr
