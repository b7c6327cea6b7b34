"""What a run refuses before anything is compiled or written: attention that its devices would not run."""

import types

import jax
import pytest

from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.errors import ConfigError
from anchorjax.training import loop
from anchorjax.training.setup import check_attention, check_host_memory, check_slices

ALONE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
ULYSSES = {"mesh__context_strategy": "ulysses"}


@pytest.mark.parametrize("name", ["pallas_gpu", "auto"])
def test_heads_too_wide_for_the_gpu_kernels(tiny_config, name):
    gpu = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    config = tiny_config(attention__implementation=name, model__head_dim=258)
    with pytest.raises(ConfigError, match=r"model.head_dim=258 is not allowed: .*'pallas_gpu' takes .* up to 256"):
        check_attention(config, ALONE, gpu)
    check_attention(tiny_config(attention__implementation=name, model__head_dim=256), ALONE, gpu)


def test_heads_of_any_width_elsewhere(tiny_config):
    check_attention(tiny_config(model__head_dim=512), ALONE)


def test_kernels_of_other_devices(tiny_config):
    config = tiny_config(attention__implementation="pallas_gpu")
    with pytest.raises(ConfigError, match=r"attention.implementation='pallas_gpu' .* needs GPUs, and JAX found cpu"):
        check_attention(config, ALONE)


def test_slices_are_those_of_the_devices(tiny_config):
    def devices(platform, slices):
        return [types.SimpleNamespace(platform=platform, slice_index=n % slices) for n in range(8)]

    two = tiny_config(mesh__slices=2, mesh__data=2, data__batch_size=8)
    check_slices(two, devices("tpu", 2))
    check_slices(tiny_config(), devices("gpu", 2))  # nodes, by which ids are in order
    check_slices(tiny_config(), jax.devices())
    with pytest.raises(ConfigError, match=r"mesh.slices=2 is not allowed: the number of slices that JAX found is 1$"):
        check_slices(two, devices("gpu", 2))
    with pytest.raises(ConfigError, match=r"mesh.slices=1 is not allowed: the number of slices that JAX found is 2$"):
        check_slices(tiny_config(), devices("tpu", 2))


def test_heads_that_ulysses_cannot_split(tiny_config):
    config = tiny_config(**ULYSSES)
    check_attention(config, ALONE | {"context": 2})
    words = r"mesh.context=4 is not allowed: mesh.context_strategy='ulysses' takes a divisor of .* = 2, or use"
    with pytest.raises(ConfigError, match=words):
        check_attention(config, ALONE | {"context": 4})


def test_zigzag_cuts_a_row_in_two_for_each_device_where_devices_hold_parts_of_it(tiny_config):
    """Under ulysses each device attends from whole rows, which keep their order."""
    zigzag = {"mesh__context_layout": "zigzag", "data__seq_len": 66}
    words = r"data.seq_len=66 is not allowed: mesh.context_layout='zigzag' takes a multiple of 2 \* mesh.context = 4"
    for strategy in ("all_gather", "ring"):
        with pytest.raises(ConfigError, match=words):
            check_attention(tiny_config(mesh__context_strategy=strategy, **zigzag), ALONE | {"context": 2})
    config = tiny_config(**ULYSSES, **zigzag, mesh__fsdp=1, mesh__context=2)
    check_attention(config, config.check_devices(2))
    check_attention(tiny_config(**zigzag), ALONE)


@pytest.mark.parametrize(
    ("overrides", "axes", "words"),
    [
        ({"attention__q_tile": 8}, {}, "attention.q_tile=8 is not allowed: 2 rows of 65536 tokens .* are 16384"),
        ({"attention__kv_tile": 8}, {}, "attention.kv_tile=8 is not allowed: 2 rows of 65536 tokens .* are 16384"),
        ({"attention__q_tile": 8, "attention__kv_tile": 16}, {"context": 2}, None),  # queries are cut, keys are not
        ({"attention__q_tile": 8, "attention__kv_tile": 8}, {"context": 2}, "attention.kv_tile=8"),
        ({"attention__q_tile": 8, "attention__kv_tile": 16} | ULYSSES, {"context": 2}, "attention.q_tile=8"),
        ({"attention__q_tile": 16, "attention__kv_tile": 16} | ULYSSES, {"context": 2}, None),
        ({"attention__q_tile": 8, "attention__kv_tile": 8}, {"fsdp": 2}, None),
        ({"attention__q_tile": 8, "train__grad_accum_steps": 2}, {}, "attention.q_tile=8"),  # evaluation sees all rows
        ({"attention__q_tile": 1}, {}, "attention.q_tile=1 is not allowed: xla takes 8 or more"),
    ],
)
def test_more_tiles_than_a_plan_counts(tiny_config, overrides, axes, words):
    config = tiny_config(data__seq_len=2**16, data__batch_size=2, **overrides)
    if words is None:
        check_attention(config, ALONE | axes)
        return
    with pytest.raises(ConfigError, match=words):
        check_attention(config, ALONE | axes)


def test_a_start_loads_its_tokenizer_once(tiny_config, data_dir, tmp_path, monkeypatch):
    """One of 128K tokens takes a second, and a start needs it for the model and for each split."""
    loaded, load = [], tokenizer_lib.load
    monkeypatch.setattr(tokenizer_lib, "load", lambda name: loaded.append(name) or load(name))
    monkeypatch.setattr("signal.signal", lambda *args: None)  # the handlers of this process stay

    class Stop(Exception):
        pass

    def job(setup, stores, *rest):
        assert set(stores) == {"train", "validation"}
        raise Stop

    monkeypatch.setattr(loop, "Job", job)
    with pytest.raises(Stop):
        loop.run(tiny_config(data__data_dir=data_dir, data__batch_size=8), tmp_path)
    assert loaded == ["bytes"]


class WithoutHostMemory:
    device_kind = "abacus"

    def addressable_memories(self):
        return jax.devices()[0].addressable_memories()[:1]


@pytest.mark.parametrize(("key", "value"), [("model.remat", "offload"), ("optimizer.moments_on", "host")])
def test_host_memory_that_devices_do_not_reach(tiny_config, key, value, monkeypatch):
    config = tiny_config(**{key.replace(".", "__"): value})
    check_host_memory(config)
    monkeypatch.setattr(jax, "local_devices", lambda: [WithoutHostMemory()])
    check_host_memory(tiny_config())
    with pytest.raises(ConfigError, match=f"{key}='{value}' is not allowed: abacus has no memory 'pinned_host'"):
        check_host_memory(config)
