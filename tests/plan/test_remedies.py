"""Which changes are tried when a step does not fit, in which order, and on top of what. Nothing is compiled."""

import dataclasses

import pytest

from anchorjax.plan import estimate, hardware, remedies, step, trial
from anchorjax.plan.memory import Memory
from tests.plan.meshes import mesh_of


def memory(gigabytes: float) -> Memory:
    return Memory(0, 0, 0, 0, 0, temporaries=int(gigabytes * 1e9), other_arguments=0)


@pytest.fixture(autouse=True)
def hopeful(monkeypatch):
    """Estimates that stop no compilation."""
    monkeypatch.setattr(estimate, "memory", lambda config, shape: memory(0))


def first(**changes) -> trial.Trial:
    config = step.recipe("llama3_8b_128k_anchor", changes).completed()
    return trial.Trial({}, config, mesh_of(config, 8), hardware.of("h100:8"), memory(200), 0, "", 1)


def tried(given: trial.Trial, sizes: dict[str, float]) -> list[remedies.Attempt]:
    """All attempts, where the step with some keys takes the GB that the first name in `sizes` says of them."""

    def compile(changes):
        config = step.changed(given.config, changes)
        text = trial.with_keys(changes)
        size = next((size for keys, size in sizes.items() if all(key in text for key in keys.split())), 200)
        return dataclasses.replace(given, changes=changes, config=config, mesh=mesh_of(config, 8), memory=memory(size))

    return list(remedies.search(given, compile))


def keys(attempts: list[remedies.Attempt]) -> list[dict]:
    return [dict(one.trial.changes) for one in attempts if one.trial]


def test_the_first_change_that_is_enough_ends_the_search():
    attempts = tried(first(), {"remat=full": 70})
    assert keys(attempts) == [{"model.remat": "full"}]


def test_changes_that_save_memory_stay_and_others_go():
    sizes = {"ffn_chunk=8192": 70, "remat=offload": 90, "context=2": 100, "context=": 120, "remat=full": 210}
    attempts = tried(first(), sizes)
    assert [one.remedy for one in attempts if not one.trial] == ["accumulation"]  # eight rows on eight devices
    half = {"mesh.fsdp": 4, "mesh.context": 2, "mesh.shard_weights_over": "fsdp_context", "train.grad_accum_steps": 2}
    tried_last = half | {"model.remat": "offload", "model.ffn_chunk": 8192}
    assert keys(attempts)[:2] == [{"model.remat": "full"}, half] and keys(attempts)[-1] == tried_last


@pytest.mark.parametrize("rows", [8, 16])
def test_every_change_is_a_configuration_of_the_same_batch(rows):
    given = first(**{"data.batch_size": rows})
    attempts = tried(given, {})
    assert {one.remedy for one in attempts} == set(remedies.REMEDIES)
    for one in attempts:
        if one.trial:
            config = one.trial.config
            assert (config.data.batch_size, config.data.seq_len) == (rows, given.config.data.seq_len)
            config.check_devices(8)


def test_order_and_levels():
    attempts = tried(first(**{"data.batch_size": 16}), {})
    assert keys(attempts) == [
        {"model.remat": "full"},
        {"train.grad_accum_steps": 2},
        *(
            {
                "mesh.fsdp": 8 // k,
                "mesh.context": k,
                "mesh.shard_weights_over": "fsdp_context",
                "train.grad_accum_steps": k,
            }
            for k in (2, 4, 8)
        ),
        {"model.remat": "offload"},
        {"model.ffn_chunk": 8192},
        {"model.ffn_chunk": 2048},
    ]


def test_what_is_far_from_fitting_by_estimate_is_not_compiled(monkeypatch):
    """Forty-eight layers do not fit with model.remat=full alone, by far."""
    monkeypatch.undo()
    compiled = []

    def compile(changes):
        compiled.append(changes)
        return dataclasses.replace(given, changes=changes, memory=memory(90))

    given = first(**{"model.num_layers": 48})
    attempts = list(remedies.search(given, compile))
    skipped = [one for one in attempts if one.estimated]
    assert [dict(one.changes) for one in skipped] == [{"model.remat": "full"}]
    assert skipped[0].estimated.total > 1.2 * given.hardware.hbm_bytes and skipped[0].trial is None
    # It saves memory by estimate, so the next ones are tried on top of it.
    assert compiled[0]["model.remat"] == "full" and compiled[0]["mesh.context"] == 2


def test_a_change_that_the_host_has_no_room_for_is_not_kept():
    given = first()

    def compile(changes):
        needed = memory(100)
        if changes["model.remat"] == "offload":
            needed = dataclasses.replace(memory(60), host=int(300e9))
        return dataclasses.replace(given, changes=changes, memory=needed)

    attempts = list(remedies.search(given, compile))
    assert [one.trial.fits for one in attempts if one.remedy == "offload"] == [False]
    assert keys(attempts)[-1] == {"model.remat": "full", "model.ffn_chunk": 2048}


def test_what_a_compiler_refuses_does_not_fit_and_its_own_number_counts():
    refused = dataclasses.replace(first(), memory=memory(60), refused=int(70e9))
    assert not refused.fits and refused.hbm_bytes == 70e9
    assert dataclasses.replace(refused, refused=0).fits


def test_what_the_host_does_not_hold_does_not_fit():
    little = dataclasses.replace(memory(60), host=int(240e9))
    assert dataclasses.replace(first(), memory=little).fits
    assert not dataclasses.replace(first(), memory=dataclasses.replace(little, host=int(260e9))).fits
