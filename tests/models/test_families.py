"""Published models: their parameter counts, and names that do not exist."""

import math

import jax
import pytest

from anchorjax import sharding
from anchorjax.models import families
from anchorjax.models.decoder import Decoder
from tests.models.making import spec_of

PARAMETERS = {
    "llama2_7b": 6738415616,
    "llama2_13b": 13015864320,
    "llama2_70b": 68976648192,
    "llama3_8b": 8030261248,
    "llama3_70b": 70553706496,
    "llama31_8b": 8030261248,
    "llama31_405b": 405853388800,
    "llama32_1b": 1235814400,
    "llama32_3b": 3212749824,
    "smollm2_135m": 134515008,
    "smollm2_360m": 361821120,
    "smollm2_1700m": 1711376384,
    "mistral_7b_v01": 7241732096,
    "mistral_7b_v03": 7248023552,
    "qwen15_1800m": 1836828672,
    "qwen25_500m": 494032768,
    "qwen25_1500m": 1543714304,
    "qwen25_7b": 7615616512,
    "qwen25_32b": 32763876352,
    "qwen25_72b": 72706203648,
    "qwen3_600m": 596049920,
    "qwen3_1700m": 1720574976,
    "qwen3_4b": 4022468096,
    "qwen3_8b": 8190735360,
    "qwen3_14b": 14768307200,
    "qwen3_32b": 32762123264,
    "gemma2_2b": 2614341888,
    "gemma2_9b": 9241705984,
    "gemma2_27b": 27227128320,
    "gemma3_270m": 268098176,
    "gemma3_1b": 999885952,
}
SIZES = [(name, size) for name in families.available() for size in families.load(name).sizes]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_published_models_have_the_published_number_of_parameters(name, size, one_device):
    assert size in PARAMETERS, f"{size} is new: give its published number of parameters here"
    model, rope = families.published(size)
    assert model["family"] == name
    spec = spec_of(model, rope=rope)
    params = sharding.abstract(lambda: Decoder(jax.random.key(0), spec))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == PARAMETERS[size]


def test_no_published_model_was_lost():
    assert {size for _, size in SIZES} == PARAMETERS.keys()


def test_unknown_names_are_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"unknown model family 'mamba'; allowed: .*gemma2, .*llama, .*qwen3"):
        families.load("mamba")
    with pytest.raises(ValueError, match=r"unknown model 'llama9_1b'; allowed: .*gemma2_2b, .*llama3_8b, .*qwen3_32b"):
        families.published("llama9_1b")


def test_rows_of_a_table_must_be_whole():
    with pytest.raises(ValueError, match="zip"):
        families.table("num_layers d_model", {"short": (1,)})
