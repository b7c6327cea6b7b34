"""benchmarks/plans.py: its rows are runs that the hardware takes, and a second call plans only what is missing."""

import math

import pytest

from anchorjax.plan import hardware, planner, step
from anchorjax.targets import Topology
from benchmarks import plans
from tests.training.jobs import ROOT


@pytest.mark.parametrize("name", plans.ROWS)
def test_a_row_divides_over_its_hardware(name):
    row = plans.ROWS[name]
    config = step.recipe(row.recipe, row.changes).completed()
    topology = Topology.parse(row.target)
    devices = hardware.chips_of(topology.size) * hardware.of(row.target).devices_per_chip
    assert math.prod(config.check_devices(devices).values()) == devices
    assert config.data.batch_size * config.data.seq_len >= 2**19  # the paper's batches, and one row of a million tokens


class Made:
    """Stands for a plan."""

    def __init__(self, config):
        self.config = config

    def to_dict(self):
        return {"fits": True, "fits_as_given": True, "seq_len": self.config.data.seq_len}


def test_rows_that_are_done_are_not_planned_again(tmp_path, monkeypatch):
    asked = []

    def plan(config, target, given, **_):
        asked.append(given[0])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return Made(config)

    monkeypatch.setattr(planner, "plan", plan)
    monkeypatch.setattr(plans.targets, "prepare", lambda: None)
    options = ["--rows=llama2_7b_128k_a100,llama3_8b_v5p,qwen15_18b_v5p", f"--out={tmp_path / 'plans.jsonl'}"]
    with pytest.raises(KeyboardInterrupt):
        plans.main(options)
    assert list(plans.read(tmp_path / "plans.jsonl")) == ["llama2_7b_128k_a100"]
    plans.main(options)
    assert asked == [
        f"--config={plans.ROWS[name].recipe}" for name in ("llama2_7b_128k_a100", *["llama3_8b_v5p"] * 2)
    ] + ["--config=qwen15_18b_128k_anchor"]
    found = plans.read(tmp_path / "plans.jsonl")
    assert [found[name]["plan"]["seq_len"] for name in found] == [131072] * 3


def test_the_tables_of_the_page_are_those_of_the_file():
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert all(table in page for table in plans.markdown(plans.read(plans.OUT)).split("\n\n"))
