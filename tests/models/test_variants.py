"""What every attention variant must do: decode as it reads whole rows, and never look ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax.masks import Mask
from anchorjax.models.variants import VARIANTS
from anchorjax.sharding import BATCH, HEADS
from tests.models.making import spec_of
from tests.training.making import make_mesh

B, T, N, K, H = 2, 24, 4, 2, 16
MODEL = {"num_heads": N, "num_kv_heads": K, "head_dim": H, "d_model": 32, "d_ff": 32, "num_layers": 1}


@pytest.fixture(params=VARIANTS)
def variant(request):
    with jax.set_mesh(make_mesh(1, 2, 1, 2)):
        yield VARIANTS[request.param]


def arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (B, T, n, H), out_sharding=HEADS) for key, n in zip(keys, (N, K, K), strict=True)]


def put(x):
    return jax.sharding.reshard(jnp.broadcast_to(jnp.asarray(x, jnp.int32), (B, x.size)), BATCH)


def whole(variant, qkv, spec, window=None):
    mask = Mask.from_segments(put(np.zeros(T)), spec.num_anchors, window)
    (context,) = variant.contexts([mask], put(np.arange(T)), spec)
    return variant.attend(*qkv, context, spec)[0]


@pytest.mark.parametrize("window", [None, 5])
def test_a_cache_filled_in_steps_gives_what_whole_rows_give(variant, window):
    """A chunk of 8, then token by token."""
    spec, qkv = spec_of({**MODEL, "compute_dtype": "float32"}, tiles=(8, 8)), arrays()
    wanted = jax.jit(lambda *x: whole(variant, x, spec, window))(*qkv)

    @jax.jit
    def step(cache, start, *new):
        size = new[0].shape[1]
        index_BT, index_BS = put(np.arange(size)) + start, put(np.arange(T))
        mask = Mask(jnp.zeros_like(index_BT), jnp.zeros_like(index_BS), index_BT, index_BS, spec.num_anchors, window)
        (context,) = variant.contexts([mask], index_BT, spec, start)
        return variant.attend(*new, context, spec, cache)

    cache, found = jax.jit(lambda: variant.cache(B, T, spec))(), []
    for first, stop in [(0, 8), *((i, i + 1) for i in range(8, T))]:
        some = [jax.device_put(np.asarray(x)[:, first:stop], x.sharding) for x in qkv]
        out, cache = step(cache, jnp.int32(first), *some)
        found.append(np.asarray(out))
    np.testing.assert_allclose(np.concatenate(found, 1), wanted, atol=1e-5)


def test_no_gradient_comes_from_later_tokens(variant):
    spec, qkv = spec_of({**MODEL, "compute_dtype": "float32"}, tiles=(8, 8)), arrays()
    probed = 9
    is_probed_T11 = (jnp.arange(T) == probed)[:, None, None]
    loss = lambda *x: jnp.sum((whole(variant, x, spec) ** 2) * is_probed_T11)  # noqa: E731
    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*qkv):
        reached = np.abs(np.asarray(gradient)).max((0, 2, 3)) > 0
        assert not reached[probed + 1 :].any() and reached[probed]
