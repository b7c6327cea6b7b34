"""The chunked loss is the plain one, in value and gradient, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from anchorjax.sharding import ACTIVATIONS, BATCH
from anchorjax.training.loss import token_nats
from tests.training.making import make_mesh

B, T, D, V = 2, 48, 16, 96


def arrays(mesh, dtype="float32", scale=1.0):
    rng = np.random.default_rng(0)
    hidden_BTD = jnp.asarray(rng.normal(size=(B, T, D)) * scale, dtype)
    weight_DV = jnp.asarray(rng.normal(size=(D, V)), dtype)
    targets_BT = rng.integers(0, V, (B, T), np.int32)
    cotangent_BT = rng.normal(size=(B, T)).astype(np.float32)
    specs = (ACTIVATIONS, P(None, "tensor"), BATCH, BATCH)
    values = (hidden_BTD, weight_DV, targets_BT, cotangent_BT)
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(values, specs, strict=True)]


def nats_and_gradients(mesh, chunk, **kwargs):
    with jax.set_mesh(mesh):
        hidden_BTD, weight_DV, targets_BT, cotangent_BT = arrays(mesh, **kwargs)

        @jax.jit
        def run(hidden_BTD, weight_DV):
            nats_BT, transpose = jax.vjp(lambda h, w: token_nats(h, w, targets_BT, chunk), hidden_BTD, weight_DV)
            return nats_BT, *transpose(cotangent_BT)

        return [np.asarray(x, np.float64) for x in run(hidden_BTD, weight_DV)]


def by_definition(**kwargs):
    """In float64 numpy: nats, and gradients p - onehot times its neighbours."""
    h, w, targets, cotangent = (np.asarray(x, np.float64) for x in arrays(make_mesh(), **kwargs))
    targets = targets.astype(int)
    logits = h @ w
    top = logits.max(-1, keepdims=True)
    p = np.exp(logits - top)
    total = p.sum(-1, keepdims=True)
    onehot = np.eye(V)[targets]
    nats = (np.log(total) + top)[..., 0] - (logits * onehot).sum(-1)
    dlogits = (p / total - onehot) * cotangent[..., None]
    return nats, dlogits @ w.T, np.einsum("btd,btv->dv", h, dlogits)


@pytest.mark.parametrize("chunk", [1, 16, 20, 48, 1000])
def test_any_chunk_gives_the_plain_loss(chunk):
    for got, wanted in zip(nats_and_gradients(make_mesh(), chunk), by_definition(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sizes", "chunk"), [((1, 2, 2, 2), 24), ((1, 2, 2, 2), 7), ((1, 1, 8, 1), 4)], ids=str)
def test_eight_devices_give_the_plain_loss(sizes, chunk):
    for got, wanted in zip(nats_and_gradients(make_mesh(*sizes), chunk), by_definition(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_large_logits_stay_finite():
    nats, *gradients = nats_and_gradients(make_mesh(), 16, scale=1e4)
    assert nats.max() > 1e4 and all(np.isfinite(x).all() for x in (nats, *gradients))
    np.testing.assert_allclose(nats, by_definition(scale=1e4)[0], rtol=1e-4, atol=0.1)


def test_bfloat16_inputs_are_summed_in_fp32():
    """The weight's gradient over 48 chunks: summed in bf16 it would be off by whole percents."""
    got, wanted = nats_and_gradients(make_mesh(), 1, dtype="bfloat16"), by_definition(dtype="bfloat16")
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5, atol=1e-5)
    error = np.linalg.norm(got[2] - wanted[2]) / np.linalg.norm(wanted[2])
    assert error < 4e-3


def test_logits_of_a_whole_row_never_exist():
    long, vocabulary, chunk = 16384, 4096, 256
    whole_row = 4 * long * vocabulary  # bytes: 256 MB
    with jax.set_mesh(make_mesh()):
        hidden = jax.ShapeDtypeStruct((1, long, 8), jnp.float32)
        weight = jax.ShapeDtypeStruct((8, vocabulary), jnp.float32)
        targets = jax.ShapeDtypeStruct((1, long), jnp.int32)
        loss = jax.value_and_grad(lambda h, w, t: jnp.sum(token_nats(h, w, t, chunk)), argnums=(0, 1))
        temporary = jax.jit(loss).lower(hidden, weight, targets).compile().memory_analysis().temp_size_in_bytes
    assert temporary < whole_row / 8, f"{temporary:,} bytes for logits of {4 * chunk * vocabulary:,} a chunk"
