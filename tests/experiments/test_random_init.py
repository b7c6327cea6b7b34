"""A random-init baseline has the checkpoint's sizes, drawn weights and norms that change nothing."""

import numpy as np
import pytest

from anchorjax.experiments.rope_precision import random_init
from anchorjax.inference import language_model
from anchorjax.models.linear import named_leaves
from tests.checkpoints.huggingface import tiny
from tests.evaluation.making import write_tokenizer


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    tiny.make("qwen2", directory)  # with biases
    write_tokenizer(directory)
    return language_model.describe(hf=directory, dtype="float32")


@pytest.fixture(scope="module")
def baseline(description):
    return random_init.draw(description, seed=3)


@pytest.mark.parametrize("spread", [random_init.KAIMING, random_init.LINEAR])
def test_weights_are_uniform_and_cut_like_the_checkpoint(description, spread):
    baseline = random_init.draw(description, seed=3, spread=spread)
    theirs = named_leaves(language_model.load(description).params)
    model, seen = description.model, set()
    inputs = {"o_NHD": model.num_heads * model.head_dim, "down_FD": model.d_ff}
    for name, x in named_leaves(baseline.params).items():
        assert (x.shape, x.dtype, x.sharding) == (theirs[name].shape, theirs[name].dtype, theirs[name].sharding), name
        values, kind = np.asarray(x), name.split(".")[-1]
        if "norm" in kind or "bias" in kind:
            assert (values == ("norm" in kind)).all(), name
            continue
        bound = (spread / inputs.get(kind, model.d_model)) ** 0.5
        assert 0.95 * bound < np.abs(values).max() <= bound, name
        assert values.std() == pytest.approx(bound / 3**0.5, rel=0.1), name
        seen.add(values.tobytes())
    assert len(seen) == 9  # no two alike: seven matrices of a block, embedding and output


def test_a_seed_draws_the_same_on_any_mesh(description, baseline):
    assert baseline.mesh.size == 8
    mesh = language_model.make_mesh(description.model, 1)
    one, other = (named_leaves(random_init.draw(description, mesh, seed).params) for seed in (3, 4))
    for name, x in named_leaves(baseline.params).items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(one[name]), err_msg=name)
    assert not np.array_equal(one["embed_VD"], other["embed_VD"])
