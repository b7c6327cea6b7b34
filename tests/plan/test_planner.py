"""What a plan chooses and says, with compilations that are made up."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest

from anchorjax.errors import ConfigError
from anchorjax.plan import comparison, estimate, planner, search, show, step, timed, trial
from anchorjax.plan.documents import Documents
from anchorjax.plan.memory import Memory
from anchorjax.plan.time import StepTime
from anchorjax.plan.work import Part
from tests.plan.meshes import mesh_of

TARGET = "h100:8"
GIVEN = ["--config=llama3_8b_128k_anchor"]
DOCUMENTS = Documents("made up", 8, 2.0, 1.0, 10.0, 9.0, 99, 512, 512, 10.0, 20, 0.5, 0.01, 1e6, 2e6, 2.0, 1.0, 1.1)


def memory(gigabytes: float) -> Memory:
    return Memory(0, 0, 0, 0, 0, temporaries=int(gigabytes * 1e9), other_arguments=0)


@pytest.fixture
def made_up(monkeypatch):
    """`made_up({"remat=full": 60})`: what compiled steps need, in GB, by their keys; all others 200 GB.

    A step takes as many seconds as its mesh has devices along fsdp.
    """

    def plan(sizes, **options):
        def run(config, target, hardware, changes):
            changed = step.changed(config, changes)
            text = trial.with_keys(changes)
            size = next((size for keys, size in sizes.items() if keys in text), 200)
            return trial.Trial(changes, changed, mesh_of(changed, 8), hardware, memory(size), 0, "", 1.0)

        def model(config, mesh, hardware, counted, hlo):
            seconds = float(mesh.shape["fsdp"])
            return StepTime((Part("all", seconds, "made up"),), seconds, 1.0, 9.0, 0.4, 1.2, (), ("it is made up",))

        monkeypatch.setattr(trial, "run", run)
        monkeypatch.setattr(estimate, "memory", lambda config, shape: memory(0))
        monkeypatch.setattr(timed.documents, "count", lambda config, shape, lengths: DOCUMENTS)
        monkeypatch.setattr(timed.time, "model", model)
        return planner.plan(step.recipe("llama3_8b_128k_anchor"), TARGET, given=GIVEN, **options)

    return plan


def test_the_docstring_names_everything_of_the_json(made_up):
    found = made_up({"": 60}).to_dict()
    json.dumps(found)
    head = planner.__doc__.partition("Bytes are those")[2]
    named = re.findall(r"^    (\w[\w, ]*?)(?:  |$)", head, re.MULTILINE)
    names = [name.strip() for line in named for name in line.split(",") if name.strip()]
    names = ["step_seconds_high" if name == "_high" else name for name in names]
    assert sorted(names) == sorted(found)


def test_a_run_that_fits_is_planned_as_it_is(made_up):
    plan = made_up({"": 60}, price=2.0)
    found = plan.to_dict()
    assert found["fits"] and found["fits_as_given"] and found["changes"] == {} and found["attempts"] == []
    assert found["hbm_bytes"] == 60e9 and found["step_seconds"] == 8
    assert found["run"]["hours"] == pytest.approx(8 * 2000 / 3600)
    assert found["run"]["price"] == pytest.approx(2.0 * 8 * found["run"]["hours"])
    assert found["launch"].split()[1:4] == ["anchorjax", "train", *GIVEN]


def test_a_run_that_fits_with_changes_is_started_with_them(made_up):
    plan = made_up({"remat=full": 60})
    assert (plan.fits, plan.first.fits) == (True, False)
    assert plan.to_dict()["changes"] == {"model.remat": "full"}
    assert "--config.model.remat=full" in plan.launch and "does not fit as given" in show.text(plan)


def test_of_a_run_that_does_not_fit_nothing_is_modelled(made_up):
    plan = made_up({})
    found = plan.to_dict()
    assert not found["fits"] and len(found["attempts"]) > 5
    for name in ("step_seconds", "step_parts", "mfu", "assumptions", "run", "launch"):
        assert found[name] is None, name
    text = show.text(plan)
    assert "no change that was tried makes it fit" in text
    assert "Time of a step" not in text and "anchorjax train" not in text


def test_the_fastest_of_a_search_that_fits_is_the_plan(made_up, monkeypatch):
    changes = [{"mesh.fsdp": 2, "mesh.context": 4}, {"mesh.fsdp": 4, "mesh.context": 2}, {"mesh.fsdp": 8}]
    estimated = SimpleNamespace(seconds=1.0)
    ranked = [search.Candidate(one, None, memory(50), estimated) for one in changes]
    monkeypatch.setattr(comparison.search, "ranked", lambda *arguments: ranked)
    plan = made_up({"fsdp=2": 90, "fsdp=4": 70, "": 60}, best=2)
    found = plan.to_dict()
    assert [one["fits"] for one in found["search"]] == [False, True]
    assert found["changes"] == changes[1] and found["step_seconds"] == 4 and found["fits_as_given"]
    assert "The fastest that was found has --config.mesh.fsdp=4 --config.mesh.context=2" in show.text(plan)


def test_a_candidate_that_is_the_run_itself_is_not_compiled_again(made_up, monkeypatch):
    itself = search.Candidate({}, None, memory(50), SimpleNamespace(seconds=1.0))
    monkeypatch.setattr(comparison.search, "ranked", lambda *arguments: [itself])
    plan = made_up({"": 60}, best=1)
    assert [one.timed.trial is plan.first for one in plan.contenders] == [True] and plan.to_dict()["changes"] == {}


def test_slices_of_the_target_are_those_of_the_mesh():
    config = step.recipe("llama3_8b_128k_anchor")
    assert planner.with_slices(config, "2xv5e:8x8").mesh.slices == 2
    assert planner.with_slices(config, "v5e:8x8").mesh.slices == 1
    four = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, slices=4))
    with pytest.raises(ConfigError, match=r"config.mesh.slices=4 is not allowed: 2xv5e:8x8 has 2"):
        planner.with_slices(four, "2xv5e:8x8")


def test_sizes_come_from_a_checkpoint_that_is_there_and_from_nowhere_else(tmp_path):
    smollm2 = step.recipe("smollm2_135m_anchor", {"init_from": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"there is no such directory, and model.num_layers, .* must come from it"):
        planner.completed(smollm2)
    assert planner.completed(step.recipe("llama3_8b_128k_anchor")).model.family == "llama"
    assert planner.completed(step.recipe("quickstart")).model.vocab_size == 320  # of bytes
