"""The leakage probe at the start of training: on the run's mesh, and before the first step."""

import dataclasses

import jax
import pytest

from anchorjax.attention import sharded
from anchorjax.errors import LeakageError
from anchorjax.sharding import shard_batch
from anchorjax.training.probe import probe_attention
from tests.training.making import make_batch, make_mesh, make_steps


@pytest.fixture
def started(tiny_config):
    """(sharded batch, number of anchors, shape) inside a mesh of two devices along three axes."""
    steps, mesh = make_steps(tiny_config()), make_mesh(2, 1, 2, 2)
    with jax.set_mesh(mesh):
        yield shard_batch(make_batch(2, 64), mesh), steps.num_anchors, steps.shape


def test_a_sound_attention_passes(started):
    assert probe_attention(*started) > 5


def test_an_attention_that_forgets_the_anchor_is_named(started, monkeypatch):
    right = sharded.attention

    def wrong(q, k, v, mask, **kwargs):
        return right(q, k, v, dataclasses.replace(mask, num_anchors=0), **kwargs)

    monkeypatch.setattr(sharded, "attention", wrong)
    with pytest.raises(LeakageError, match="token 0 of row 0 does not reach token"):
        probe_attention(*started)
