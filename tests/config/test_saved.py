"""A config.json of an earlier commit opens in today's keys."""

import json
import pathlib

import pytest

from anchorjax.config import KEYS, RENAMED, defaults, resolve, upgraded
from tests import tiny

OLD = pathlib.Path(__file__).parents[1] / "golden/config_0bf952d.json"  # tests/tiny.py's, as that commit saved it


def test_old_config_is_the_same_run():
    assert resolve(upgraded(json.loads(OLD.read_text()))) == tiny.config()


def test_every_key_that_was_renamed_in_its_section_is_in_the_old_file():
    old = json.loads(OLD.read_text())
    for name, new in RENAMED.items():
        section, _, key = name.partition(".")
        assert name not in KEYS and new in KEYS
        assert key in old[section] or not new.startswith(f"{section}.")


@pytest.mark.parametrize(("old", "new"), [("gather", "all_gather"), ("ulysses", "ulysses"), (["x"], ["x"])])
def test_a_key_that_moved_to_another_section_takes_its_value_along(old, new):
    fields = tiny.config().to_dict()
    del fields["mesh"]["context_strategy"]
    fields["attention"]["context_parallel"] = old
    found = upgraded(fields)
    assert found["mesh"]["context_strategy"] == new and found == tiny.config().to_dict() | {"mesh": found["mesh"]}
    assert upgraded({"attention": {"context_parallel": old}})["attention"] == DEFAULTS["attention"]


def test_key_that_came_later_takes_its_default():
    fields = tiny.config(optimizer__weight_decay=0.3, lora__targets=("q",)).to_dict()
    del fields["optimizer"]["decay_steps"], fields["mesh"], fields["lora"]["alpha"]
    found = upgraded(fields)
    assert found == tiny.config(optimizer__weight_decay=0.3, lora__targets=("q",)).to_dict()
    assert json.loads(json.dumps(found)) == found  # with lists for tuples, as in the file


def test_values_that_nothing_read_become_defaults():
    fields = tiny.config().to_dict()
    fields["data"]["pose_chunks"], fields["train"]["exact_tail"] = 3, 32
    assert resolve(upgraded(fields)) == tiny.config()
    used = tiny.config(train__objective="exact", train__exact_tail=32)
    assert resolve(upgraded(used.to_dict())) == used


def test_file_of_a_model_keeps_to_its_sections():
    fields = {"model": {"model_width": 8, "num_layers": 2}, "rope": {}, "lora": {"rank": 0}}
    found = upgraded(fields)
    assert set(found) == set(fields) and found["model"]["d_model"] == 8 and "model_width" not in found["model"]
    assert "d_ff" not in found["model"], "a size that is missing is damage, not age"


def test_current_and_foreign_files_stay_as_they_are():
    fields = tiny.config().to_dict()
    assert upgraded(fields) == fields
    foreign = {"model_type": "llama", "model": {"window": 3}, "data": {}}
    assert upgraded(foreign) == foreign


DEFAULTS = json.loads(json.dumps(defaults()))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"data": 3}, {"data": 3}),
        ({"model": None}, {"model": None}),
        (
            {"data": {"row_length": 5}, "model": "x"},
            DEFAULTS | {"data": DEFAULTS["data"] | {"seq_len": 5}, "model": "x"},
        ),
    ],
)
def test_damage_is_left_to_the_reader(fields, expected):
    assert upgraded(fields) == expected
