"""Checkpoints: what comes back is what was saved, on any mesh, and damage is passed over aloud or refused."""

import dataclasses
import functools
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax.checkpoints import orbax
from anchorjax.checkpoints.orbax import Checkpoints, DataPosition
from anchorjax.errors import CheckpointError
from anchorjax.models.linear import named_leaves
from anchorjax.sharding import abstract
from anchorjax.training.state import TrainState, init_state
from tests import tiny
from tests.training.making import make_mesh, make_steps

CONFIG = tiny.config(model__tie_embeddings=False)
STEPS = make_steps(CONFIG)
POSITION = DataPosition(12, "f" * 64, "e" * 64)
MESHES = [(1, 1, 1, 1), (1, 8, 1, 1), (1, 4, 1, 2), (2, 2, 2, 1)]


@functools.cache
def layout(sizes: tuple[int, ...], over: str = "fsdp") -> TrainState:
    """The abstract state on a mesh of these sizes, its weights shared over `over`."""
    config = dataclasses.replace(CONFIG, mesh=dataclasses.replace(CONFIG.mesh, shard_weights_over=over))
    with jax.set_mesh(make_mesh(*sizes)):
        return abstract(lambda: init_state(0, make_steps(config).spec, STEPS.optimizer))


@functools.cache
def state_on(sizes: tuple[int, ...], step: int = 0) -> TrainState:
    """A state of random numbers, moments too: no two leaves and no two steps are alike."""
    rng = np.random.default_rng(step)

    def fill(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(step + 1), leaf.sharding)
        return jax.device_put(np.asarray(rng.normal(size=leaf.shape) * 1000, leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, layout(sizes))


def raw(state: TrainState) -> dict[str, np.ndarray]:
    """Host copies of the leaves by name, keys as their numbers."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = named_leaves(state)
    return {name: np.array(jax.random.key_data(x) if is_key(x) else x) for name, x in leaves.items()}


def assert_same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype and array.tobytes() == right[name].tobytes(), name


def save(workdir, *steps: int, sizes=MESHES[0], keep: int = 3) -> None:
    checkpoints = Checkpoints(workdir, keep=keep)
    for step in steps:
        checkpoints.save(step, state_on(sizes, step), CONFIG.to_dict(), POSITION)
    checkpoints.close()


def restore(workdir, sizes=MESHES[0], over: str = "fsdp"):
    checkpoints = Checkpoints(workdir, keep=3)
    try:
        return checkpoints.restore_latest(layout(sizes, over))
    finally:
        checkpoints.close()


@pytest.mark.parametrize("target", MESHES, ids=str)
def test_state_comes_back_bit_for_bit_on_any_mesh(tmp_path, target):
    saved_on = (1, 8, 1, 1) if target != (1, 8, 1, 1) else (1, 1, 1, 1)
    save(tmp_path, 4, sizes=saved_on)
    state, meta = restore(tmp_path, target)
    assert_same(raw(state), raw(state_on(saved_on, 4)))
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(layout(target)), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    assert meta.pop("digests").keys() == raw(state).keys()
    expected = {"format": 2, "step": 4, "config": CONFIG.to_dict(), "data": dataclasses.asdict(POSITION)}
    assert meta == expected


def test_weights_that_rested_on_some_devices_come_back_on_more(tmp_path):
    sizes = (1, 2, 4, 1)
    save(tmp_path, 4, sizes=sizes)
    state, _ = restore(tmp_path, sizes, "fsdp_context")
    assert_same(raw(state), raw(state_on(sizes, 4)))
    assert state.params.embed_VD[...].sharding.shard_shape(state.params.embed_VD.shape) == (320, 32 // 8)


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path) is None


def test_names_have_no_trace_of_their_wrappers():
    names = named_leaves(layout(MESHES[0]))
    assert {"step", "key", "params.embed_VD", "params.blocks.attention.q_DNH", "params.unembed_DV"} <= set(names)
    assert not [name for name in names if "value" in name or name[0] == "_" or "[" in name]
    assert len(names) == len(jax.tree.leaves(layout(MESHES[0])))


def test_the_last_ones_are_kept(tmp_path):
    save(tmp_path, 2, 4, 6, 8, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000006", "00000008"]


def damage_arrays(path):
    files = [file for file in (path / "state").rglob("*") if file.is_file() and file.parent.name == "d"]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bytes(path):
    """In every file of arrays at once."""
    for file in (path / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 0xFF
            file.write_bytes(content)


def remove_largest(path):
    max((path / "state").rglob("*"), key=lambda file: file.stat().st_size * (file.parent.name == "d")).unlink()


def other_format(path):
    (file,) = (path / "meta").glob("metadata")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1}))


DAMAGES = {
    "truncated arrays": damage_arrays,
    "flipped bytes": flip_bytes,
    "arrays described wrongly": lambda path: (path / "state" / "array_metadatas" / "process_0").write_text("[]"),
    "a file of arrays less": remove_largest,
    "no arrays": lambda path: shutil.rmtree(path / "state"),
    "no array index": lambda path: (path / "state" / "manifest.ocdbt").unlink(),
    "no meta": lambda path: shutil.rmtree(path / "meta"),
    "half of the meta": lambda path: (path / "meta" / "metadata").write_text('{"format": 2, "st'),
    "meta without its keys": lambda path: (path / "meta" / "metadata").write_text("{}"),
    "empty directory": lambda path: (shutil.rmtree(path), path.mkdir()),
    "another format": other_format,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_newest_is_passed_over_aloud_and_saving_goes_on(tmp_path, caplog, damage):
    save(tmp_path, 4, 8)
    damage(tmp_path / "checkpoints" / "00000008")
    with caplog.at_level(logging.WARNING, "anchorjax"):
        state, meta = restore(tmp_path)
    assert meta["step"] == 4
    assert_same(raw(state), raw(state_on(MESHES[0], 4)))
    assert "checkpoint 8" in caplog.text
    assert [path.name[:19] for path in (tmp_path / "checkpoints").glob("[!0]*")] == ["unreadable-00000008"]
    save(tmp_path, 6, 8, 10)
    assert restore(tmp_path)[1]["step"] == 10


def wrapped(cause: Exception) -> Exception:
    error = Exception("Encountered error while reading array index")
    error.__cause__ = cause
    return error


OTHER_CAUSES = {
    "device memory": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 2147483648 bytes."),
    "host memory": MemoryError("Unable to allocate 2.00 GiB"),
    "a permission": PermissionError(13, "Permission denied", "d/abc"),
    "a disk": OSError(5, "Input/output error"),
    "a network": ValueError("UNAVAILABLE: Error reading gs://bucket/run/state/manifest.ocdbt"),
    "what Orbax wraps": wrapped(ValueError("RESOURCE_EXHAUSTED: Error reading d/abc")),
    "one of several": ExceptionGroup("reads", [KeyError("a"), MemoryError("Unable to allocate 2.00 GiB")]),
}


@pytest.mark.parametrize("cause", OTHER_CAUSES.values(), ids=OTHER_CAUSES)
def test_a_checkpoint_that_cannot_be_read_for_another_reason_than_damage_stays(tmp_path, monkeypatch, cause):
    save(tmp_path, 4, 8)

    def fail(*_, **__):
        raise cause

    with monkeypatch.context() as broken:
        broken.setattr(orbax.ocp.CheckpointManager, "restore", fail)
        with pytest.raises(CheckpointError) as error:
            restore(tmp_path)
    first = f"checkpoint 8 in {tmp_path}/checkpoints cannot be read: "
    assert str(error.value).startswith(first) and "\n" not in str(error.value)
    assert str(error.value).removeprefix(first) == str(cause)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000004", "00000008"]
    assert restore(tmp_path)[1]["step"] == 8


@pytest.mark.parametrize("place", [0.1, 0.35, 0.6, 0.85])
def test_one_flipped_byte_anywhere_in_the_arrays_is_noticed(tmp_path, caplog, place):
    """Orbax itself restores nearly all of these in silence."""
    save(tmp_path, 4, 8)
    files = [file for file in (tmp_path / "checkpoints/00000008/state").rglob("*") if file.parent.name == "d"]
    file = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 0x10
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "anchorjax"):
        assert restore(tmp_path)[1]["step"] == 4
    assert "checkpoint 8" in caplog.text


def test_orbax_own_description_is_not_needed(tmp_path):
    save(tmp_path, 4)
    (tmp_path / "checkpoints" / "00000004" / "state" / "_METADATA").unlink()
    assert_same(raw(restore(tmp_path)[0]), raw(state_on(MESHES[0], 4)))


def test_an_id_identifies_the_weights(tmp_path):
    """A copy has the same id; other weights at the same step and the same weights at another step have another."""
    for name, seed in (("one", 4), ("other", 6)):
        checkpoints = Checkpoints(tmp_path / name, keep=3)
        for step in (4, 8):
            checkpoints.save(step, state_on(MESHES[0], seed), {}, None)
        checkpoints.close()
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    ids = {
        (name, step): Checkpoints(tmp_path / name, keep=3, read_only=True).weights_id(step)
        for name in ("one", "other", "copy")
        for step in (4, 8)
    }
    assert len(set(ids.values())) == 4
    assert all(ids["one", step] == ids["copy", step] for step in (4, 8))
    DAMAGES["no meta"](tmp_path / "copy/checkpoints/00000008")
    with pytest.raises(CheckpointError, match=r"checkpoint 8 in .* cannot be read"):
        Checkpoints(tmp_path / "copy", keep=3, read_only=True).weights_id(8)


def test_a_checkpoint_that_is_asked_for_is_read_or_refused(tmp_path):
    """No other is read in its place."""
    save(tmp_path, 4, 8)
    checkpoints, like = Checkpoints(tmp_path, keep=3, read_only=True), layout(MESHES[0])
    assert checkpoints.restore(4, like)[1]["step"] == 4
    DAMAGES["truncated arrays"](tmp_path / "checkpoints" / "00000008")
    with pytest.raises(CheckpointError, match=r"checkpoint 8 in .* cannot be read"):
        checkpoints.restore(8, like)


def test_reading_only_moves_nothing(tmp_path):
    save(tmp_path, 4, 8)
    DAMAGES["no meta"](tmp_path / "checkpoints" / "00000008")
    assert Checkpoints(tmp_path, keep=1, read_only=True).restore_latest(layout(MESHES[0]))[1]["step"] == 4
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000004", "00000008"]


@pytest.mark.parametrize("damage", ["truncated arrays", "no meta", "another format"])
def test_nothing_readable_is_an_error_and_not_a_fresh_start(tmp_path, damage):
    save(tmp_path, 4, 8)
    for name in ("00000004", "00000008"):
        DAMAGES[damage](tmp_path / "checkpoints" / name)
    with pytest.raises(CheckpointError, match=r"\[4, 8\].*can be read"):
        restore(tmp_path)


def test_other_shapes_are_not_read(tmp_path):
    save(tmp_path, 4)
    wide = make_steps(tiny.config(model__tie_embeddings=False, model__d_ff=96))
    with jax.set_mesh(make_mesh()):
        like = abstract(lambda: init_state(0, wide.spec, wide.optimizer))
    with pytest.raises(CheckpointError):
        Checkpoints(tmp_path, keep=3).restore_latest(like)


def test_unfinished_save_is_ignored_and_cleared_away(tmp_path):
    save(tmp_path, 4)
    half = tmp_path / "checkpoints" / "00000008.orbax-checkpoint-tmp"
    half.mkdir()
    assert restore(tmp_path)[1]["step"] == 4
    assert not half.exists()


def test_buffers_may_be_reused_while_the_save_is_under_way(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    state = jax.tree.map(jnp.copy, state_on(MESHES[1], 3))
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0, state.params), donate_argnums=0)
    checkpoints.save(3, state, CONFIG.to_dict(), POSITION)
    with jax.set_mesh(make_mesh(*MESHES[1])):
        jax.block_until_ready(overwrite(state))
    checkpoints.close()
    assert_same(raw(restore(tmp_path)[0]), raw(state_on(MESHES[0], 3)))
