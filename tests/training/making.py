"""Steps, states and batches on any mesh of the eight simulated devices."""

import jax
import numpy as np

from anchorjax import sharding
from anchorjax.config import Config
from anchorjax.masks import allowed, anchors_of
from anchorjax.training.optimizer import make_optimizer, make_schedule
from anchorjax.training.state import TrainState, init_state
from anchorjax.training.step import Steps
from anchorjax.types import Batch


def make_mesh(*sizes: int) -> jax.sharding.Mesh:
    """A mesh (data, fsdp, context, tensor); sizes that are not given are 1."""
    return sharding.make_mesh(dict(zip(sharding.AXES, (*sizes, 1, 1, 1, 1), strict=False)))


def make_steps(config: Config) -> Steps:
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    schedule = make_schedule(config.optimizer, config.train.steps)
    return Steps(config, anchors_of(config.data.mask), optimizer, schedule)


def make_state(steps: Steps) -> TrainState:
    """Call it inside `jax.set_mesh`."""
    config = steps.config
    return jax.jit(lambda: init_state(config.seed, steps.spec, steps.optimizer))()


def make_batch(B: int, T: int, seed: int = 0, vocab_size: int = 320) -> Batch:
    """Random rows of an anchor, three documents and some pads; row b has about (b + 1) / B of the targets."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, vocab_size, (2, B, T), np.int32)
    index = np.arange(T, dtype=np.int32)
    segments = np.tile(1 + 3 * index // T, (B, 1)).astype(np.int32)
    segments[:, 0] = 0
    segments[::2, -T // 8 :] = -1
    is_target = (rng.random((B, T)) < (1 + np.arange(B)[:, None]) / B) & (segments > 0)
    seen = allowed(index[:, None], index, segments[:, :, None], segments[:, None], num_anchors=1)
    visible = seen.sum(-1, dtype=np.int32)
    index = np.tile(index, (B, 1))
    return Batch(tokens, targets, is_target, index, segments, visible, index)


def assert_trees_close(left, right, **tolerances) -> None:
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(left)]
    for name, a, b in zip(names, jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerances, err_msg=name)
