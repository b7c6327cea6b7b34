"""What every shipped recipe resolves to, key by key.

    python -m tests.config.test_golden        # writes the files anew

The files change with every recipe, default or key that changes. Renew them when that is what you want, and read the
diff: it shows each run that becomes another one. A default that changes there changes all runs that rely on it.
"""

import json
import pathlib

import pytest

from anchorjax.config import recipe, recipes, resolve

FOLDER = pathlib.Path(__file__).parents[1] / "golden/recipes"


def resolved(name: str) -> str:
    return json.dumps(resolve(recipe(name).to_dict()).to_dict(), indent=2) + "\n"


@pytest.mark.parametrize("name", recipes.shipped())
def test_recipe_resolves_to_what_it_did(name):
    file = FOLDER / f"{name}.json"
    assert file.exists(), f"{name} is new: run `python -m tests.config.test_golden`"
    message = f"{name} is another run than before; if you mean that, run `python -m tests.config.test_golden`"
    assert json.loads(file.read_text()) == json.loads(resolved(name)), message


def test_there_is_no_file_without_a_recipe():
    found = {file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob("*.json")}
    assert found == set(recipes.shipped())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.rglob("*.json"):
        old.unlink()
    for each in recipes.shipped():
        (FOLDER / each).parent.mkdir(exist_ok=True)
        (FOLDER / f"{each}.json").write_text(resolved(each))
