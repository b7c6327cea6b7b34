"""EXACT (arXiv 2605.10544): weights by hand, and what holds of the weights of any run."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorjax.errors import ConfigError
from anchorjax.sharding import shard_batch
from anchorjax.training import objectives
from anchorjax.training.objectives.exact import Exact, exact_weights
from configs.methods import exact
from tests import tiny
from tests.training.making import make_batch, make_mesh

TARGETS_K = np.array([8, 40, 100, 300, 200, 50, 0])  # of rows of 64 tokens; the tail begins at 16 keys


def test_by_hand():
    """Tail of 30, 10 and 0 targets: q = 3/4, 1/4, gamma 1/2, so that r = 2/sqrt(3) and 2."""
    weights = exact_weights(np.array([500, 100, 30, 10, 0]), tail=4, alpha=0.15, gamma=0.5)
    mean_r = 0.75 * 2 / np.sqrt(3) + 0.25 * 2
    expected = [1, 1, 1 + 0.15 * (2 / np.sqrt(3)) / mean_r, 1 + 0.15 * 2 / mean_r, 1]
    np.testing.assert_allclose(weights, expected)
    assert 0.75 * (weights[2] - 1) + 0.25 * (weights[3] - 1) == pytest.approx(0.15)
    np.testing.assert_allclose(exact_weights(np.array([5, 9, 1]), 1, 0.3, 0.0), 1.3), "gamma 0: all of the tail alike"
    inverse = exact_weights(np.array([5, 10, 40]), 1, 1.0, 1.0) - 1
    assert inverse[1] == pytest.approx(4 * inverse[2]), "gamma 1: inverse frequency"


def test_weighs_each_target_by_its_bucket():
    batch = make_batch(2, 64)
    mesh, objective = make_mesh(), Exact(tuple(float(10 + k) for k in range(7)))
    with jax.set_mesh(mesh):
        sharded = shard_batch(batch, mesh)
        aux_BT = np.asarray(jax.jit(lambda b: objective.prepare(None, b, None))(sharded))
    expected = [[10 + max(int(v), 1).bit_length() - 1 for v in row] for row in batch.visible_BT]
    assert aux_BT.tolist() == expected and np.unique(expected).size > 3


def test_without_a_tail_or_without_the_training_rows_is_an_error():
    config = tiny.config(train__objective="exact", train__exact_tail=64)
    with pytest.raises(ConfigError, match="no training target is in a bucket of 64 keys or more") as caught:
        objectives.make(config, TARGETS_K)
    assert caught.value.key == "train.exact_tail"
    with pytest.raises(ValueError, match="needs the number of training targets"):
        objectives.make(config)


@given(
    targets=st.lists(st.integers(0, 10**9), min_size=2, max_size=20),
    tail=st.integers(0, 18),
    alpha=st.floats(0, 100),
    gamma=st.floats(0, 1),
)
def test_the_tail_gets_alpha_more_on_average_and_rarer_targets_more_of_it(targets, tail, alpha, gamma):
    targets_K = np.array(targets)
    weights_K = exact_weights(targets_K, 2**tail, alpha, gamma)
    in_tail_K = (np.arange(len(targets)) >= tail) & (targets_K > 0)
    assert (weights_K[~in_tail_K] == 1).all()
    if in_tail_K.any():
        extra = np.average(weights_K[in_tail_K] - 1, weights=targets_K[in_tail_K])
        assert extra == pytest.approx(alpha, rel=1e-6, abs=1e-9)
        by_count = weights_K[in_tail_K][np.argsort(targets_K[in_tail_K])]
        assert (np.diff(by_count) <= 1e-9 * (1 + alpha)).all()


def test_the_recipe_weighs_targets_of_a_quarter_of_the_row():
    config = exact.get_config()
    assert config.train.objective == "exact" and config.train.exact_tail == 0
    made = objectives.make(tiny.config(train__objective="exact", data__seq_len=64), TARGETS_K)
    assert made.weights[:4] == (1.0,) * 4 and min(made.weights[4:6]) > 1
