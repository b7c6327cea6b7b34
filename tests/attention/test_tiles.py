"""Which implementation and tiles a run gets, by its configuration and its devices."""

import subprocess
import sys
import types

import jax
import pytest

from anchorjax import targets
from anchorjax.attention import MODULES, choose, pallas_gpu, pallas_tpu
from anchorjax.config import AttentionConfig
from anchorjax.errors import ConfigError
from anchorjax.types import IMPLEMENTATIONS


@pytest.mark.parametrize(
    ("kind", "target"),
    [("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("TPU7x", "tpu7x")],
)
def test_a_device_and_its_target_agree(kind, target):
    """By the table itself: an unknown kind takes v5e's tiles, which are those of three generations."""
    assert pallas_tpu.KINDS[kind] == target
    assert pallas_tpu.default_tiles(kind) == pallas_tpu.default_tiles(target)


@pytest.mark.parametrize(
    ("seq_len", "tile"),
    [(2**12, 128), (2**17, 128), (2**17 + 1, 256), (2**18, 256), (2**18 + 1, 512), (2**20, 512), (2**24, 512)],
)
def test_a_gpu_takes_larger_tiles_for_longer_rows(seq_len, tile):
    assert pallas_gpu.default_tiles("NVIDIA H100 80GB HBM3", seq_len) == (tile, tile)
    assert choose(AttentionConfig("pallas_gpu", 0, 0), seq_len) == AttentionConfig("pallas_gpu", tile, tile)


@pytest.mark.parametrize("target", [*targets.TPUS, "TPU of tomorrow"])
def test_a_tpu_takes_its_tiles(target):
    assert all(side % pallas_tpu.LANES == 0 for side in pallas_tpu.default_tiles(target))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_implementation_describes_itself(implementation):
    """Its own tiles are supported, and what it refuses is named as check_attention expects."""
    module = MODULES[implementation]
    assert module.BACKEND in (None, "tpu", "gpu")
    for seq_len in (128, 2**12, 2**20):
        assert module.supports(*module.default_tiles("cpu", seq_len), 64, "bfloat16") is None
    assert module.supports(1, 128)[0] == "q_tile" and module.supports(128, 1)[0] == "kv_tile"
    refused = module.supports(128, 128, 2**20, "bfloat16")
    assert refused is None or refused[0] == "head_dim"


def test_descriptions_import_no_kernel():
    code = "import sys, anchorjax.attention; sys.exit(any('pallas' in name.split('.') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.parametrize(("platform", "name"), [("cpu", "xla"), ("tpu", "pallas_tpu"), ("gpu", "pallas_gpu")])
@pytest.mark.parametrize("is_given", [True, False])
def test_auto_takes_the_device_s_kernels(platform, name, is_given, monkeypatch):
    device = types.SimpleNamespace(platform=platform, device_kind=platform)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    chosen = choose(AttentionConfig("auto", 0, 0), 4096, device if is_given else None)
    assert chosen.implementation == name and min(chosen.q_tile, chosen.kv_tile) >= 128


def test_what_is_given_is_kept():
    assert choose(AttentionConfig("reference", 24, 0), 4096) == AttentionConfig("reference", 24, 256)
    assert choose(AttentionConfig("pallas_gpu", 64, 0), 4096) == AttentionConfig("pallas_gpu", 64, 128)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            AttentionConfig("pallas_tpu", 100, 0),
            "attention.q_tile=100 is not allowed: pallas_tpu takes multiples of 128",
        ),
        (AttentionConfig("pallas_tpu", 0, 192), "attention.kv_tile=192 is not allowed"),
        (AttentionConfig("pallas_gpu", 96, 0), "attention.q_tile=96 is not allowed: pallas_gpu takes powers of two"),
        (AttentionConfig("pallas_gpu", 0, 8), "attention.kv_tile=8 is not allowed"),
        (AttentionConfig("xla", 0, 1), "attention.kv_tile=1 is not allowed: xla takes 8 or more"),
        (AttentionConfig("reference", 7, 0), "attention.q_tile=7 is not allowed: reference takes 8 or more"),
    ],
)
def test_tiles_that_kernels_do_not_take_are_named(config, words):
    with pytest.raises(ConfigError, match=words):
        choose(config, 4096)
