"""A run's model is evaluated as it was trained: its attention variant stays, whatever machine evaluates it."""

import dataclasses
import json
import types

import jax
import pytest

from anchorjax import sharding
from anchorjax.config import AttentionConfig
from anchorjax.errors import ConfigError
from anchorjax.evaluation.tasks import held_out
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator
from anchorjax.inference.scoring import Scorer
from anchorjax.models.decoder import Decoder
from anchorjax.models.variants import VARIANTS, plain
from tests import tiny

OTHER = "other"


@pytest.fixture
def asked(monkeypatch):
    """Adds a variant that computes what `plain` does; a list grows by an entry for each layer that it attends in."""
    asked = []

    def attend(*arguments, **named):
        asked.append(OTHER)
        return plain.attend(*arguments, **named)

    variant = types.SimpleNamespace(contexts=plain.contexts, cache=plain.cache, attend=attend)
    monkeypatch.setitem(VARIANTS, OTHER, variant)
    keys = [
        dataclasses.replace(key, choices=(*key.choices, OTHER)) if key.name == "attention.variant" else key
        for key in AttentionConfig.declared()
    ]
    monkeypatch.setattr(AttentionConfig, "declared", staticmethod(lambda: keys))
    return asked


def write_run(directory, **attention):
    config = tiny.mapping()
    config["attention"] |= attention
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_answers_come_from_the_run_s_variant(asked, tmp_path):
    description = language_model.describe(workdir=write_run(tmp_path, variant=OTHER, q_tile=16))
    spec = description.spec(64)
    assert (spec.attention.variant, spec.attention.q_tile) == (OTHER, 256)
    mesh = language_model.make_mesh(description.model, 1)
    with jax.set_mesh(mesh):
        params = sharding.zeros(lambda: Decoder(jax.random.key(0), spec))
    model = language_model.LanguageModel(description, params, mesh, None)
    jax.clear_caches()  # a program of another test does not call the variant
    Scorer(model, 1).score([[256, 65, 66]])
    scored = len(asked)
    assert scored
    Generator(model, 1).generate([[256, 65, 66]], 2)
    assert len(asked) > scored


@pytest.mark.parametrize(
    "attention",
    [
        {"implementation": "xla", "q_tile": 16},
        {"implementation": "pallas_tpu", "q_tile": 128, "kv_tile": 128},  # which a CPU does not run
    ],
    ids=["as trained", "of another machine"],
)
def test_the_held_out_loss_is_of_the_run_s_variant(asked, tmp_path, attention):
    setup = held_out.load(write_run(tmp_path, variant=OTHER, **attention))
    assert setup.config.attention.variant == setup.steps.spec.attention.variant == OTHER


def test_a_variant_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.attention\.variant='gone' is not allowed: it must be one of plain"):
        language_model.describe(workdir=write_run(tmp_path, variant="gone"))
