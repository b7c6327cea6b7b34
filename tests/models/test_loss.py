"""The chunked loss is the plain one, in value and gradient, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from anchorjax.models.loss import token_nats, weighted_nats
from anchorjax.sharding import ACTIVATIONS, BATCH, UNEMBEDDING
from tests.training.making import make_mesh

B, T, D, V = 2, 48, 16, 96
LONG, WORDS, CHUNK = 16384, 4096, 256


def arrays(mesh, dtype="float32", scale=1.0, common=0.0):
    rng = np.random.default_rng(0)
    hidden_BTD = jnp.asarray(rng.normal(size=(B, T, D)) * scale, dtype)
    weight_DV = jnp.asarray(rng.normal(size=(D, V)) + common, dtype)
    targets_BT = rng.integers(0, V, (B, T), np.int32)
    cotangent_BT = rng.normal(size=(B, T)).astype(np.float32)
    specs = (ACTIVATIONS, UNEMBEDDING, BATCH, BATCH)
    values = (hidden_BTD, weight_DV, targets_BT, cotangent_BT)
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(values, specs, strict=True)]


def as_given(nats_c, weights_c, aux_c):
    return weights_c


def nats_and_gradients(mesh, chunk, soft_cap=0.0, **kwargs):
    """Nats of each token; of their weighted sum the value, and the gradients times 3, all in float64."""
    with jax.set_mesh(mesh):
        hidden_BTD, weight_DV, targets_BT, weights_BT = arrays(mesh, **kwargs)

        @jax.jit
        def run(hidden_BTD, weight_DV, weights_BT):
            nats_BT = token_nats(hidden_BTD, weight_DV, targets_BT, chunk, soft_cap)
            total, transpose = jax.vjp(
                lambda h, w: weighted_nats(h, w, targets_BT, weights_BT, (), chunk, soft_cap, as_given),
                hidden_BTD,
                weight_DV,
            )
            return nats_BT, total, *transpose(jnp.float32(3.0))

        nats_BT, total, *gradients = run(hidden_BTD, weight_DV, weights_BT)
        alone = jax.jit(lambda *a: weighted_nats(*a, (), chunk, soft_cap, as_given))(
            hidden_BTD, weight_DV, targets_BT, weights_BT
        )
        np.testing.assert_allclose(alone, total, rtol=1e-6)
        return [np.asarray(x, np.float64) for x in (nats_BT, total, *gradients)]


def by_definition(soft_cap=0.0, **kwargs):
    """The same in float64 numpy; the gradients are p - onehot times its neighbours."""
    h, w, targets, weights = (np.asarray(x, np.float64) for x in arrays(make_mesh(), **kwargs))
    targets = targets.astype(int)
    logits, slope = h @ w, 1.0
    if soft_cap:
        logits = soft_cap * np.tanh(logits / soft_cap)
        slope = 1 - (logits / soft_cap) ** 2
    top = logits.max(-1, keepdims=True)
    p = np.exp(logits - top)
    total = p.sum(-1, keepdims=True)
    onehot = np.eye(V)[targets]
    nats = (np.log(total) + top)[..., 0] - (logits * onehot).sum(-1)
    dlogits = (p / total - onehot) * weights[..., None] * slope
    return nats, (nats * weights).sum(), 3 * dlogits @ w.T, 3 * np.einsum("btd,btv->dv", h, dlogits)


@pytest.mark.parametrize("chunk", [1, 16, 20, 48, 1000])
def test_any_chunk_gives_the_plain_loss(chunk):
    for got, wanted in zip(nats_and_gradients(make_mesh(), chunk), by_definition(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sizes", "chunk"), [((1, 2, 2, 2), 24), ((1, 2, 2, 2), 7), ((1, 1, 8, 1), 4)], ids=str)
def test_eight_devices_give_the_plain_loss(sizes, chunk):
    for got, wanted in zip(nats_and_gradients(make_mesh(*sizes), chunk), by_definition(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_large_logits_stay_finite():
    nats, *rest = nats_and_gradients(make_mesh(), 16, scale=1e4)
    assert nats.max() > 1e4 and all(np.isfinite(x).all() for x in (nats, *rest))
    np.testing.assert_allclose(nats, by_definition(scale=1e4)[0], rtol=1e-4, atol=0.1)


def test_bfloat16_inputs_are_summed_in_fp32():
    """The weight's gradient over 96 chunks: summed in bf16 it would be off by whole percents."""
    got, wanted = nats_and_gradients(make_mesh(), 1, dtype="bfloat16"), by_definition(dtype="bfloat16")
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5, atol=1e-5)
    for place in (2, 3):
        assert np.linalg.norm(got[place] - wanted[place]) < 4e-3 * np.linalg.norm(wanted[place])


def test_what_all_words_have_in_common_pulls_at_no_hidden_state():
    """Over the vocabulary the logits' gradient sums to zero; rounded to bf16 it does not (decision 55)."""
    options = {"dtype": "bfloat16", "common": 30.0}
    got, wanted = nats_and_gradients(make_mesh(), 16, **options)[2], by_definition(**options)[2]
    assert np.linalg.norm(got - wanted) < 4e-3 * np.linalg.norm(wanted)


def test_soft_cap():
    for got, wanted in zip(nats_and_gradients(make_mesh(), 20, soft_cap=3.0), by_definition(3.0), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def compiled(differentiate):
    """The program of the gradient in some of (hidden states, output matrix) of 16384 tokens and 4096 words."""
    mesh = make_mesh()

    def abstract(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        arrays = (
            abstract((1, LONG, 8), jnp.float32, ACTIVATIONS),
            abstract((8, WORDS), jnp.float32, UNEMBEDDING),
            abstract((1, LONG), jnp.int32, BATCH),
            abstract((1, LONG), jnp.float32, BATCH),
        )
        gradient = jax.value_and_grad(
            lambda *arrays: weighted_nats(*arrays, (), CHUNK, 0.0, as_given), argnums=differentiate
        )
        return jax.jit(gradient).lower(*arrays).compile()


def test_logits_of_a_whole_row_never_exist():
    temporary = compiled((0, 1)).memory_analysis().temp_size_in_bytes
    whole_row = 4 * LONG * WORDS  # bytes: 256 MB
    assert temporary < whole_row / 8, f"{temporary:,} bytes for logits of {4 * CHUNK * WORDS:,} a chunk"


@pytest.mark.parametrize(("differentiate", "matmuls"), [((0,), 2), ((1,), 2), ((0, 1), 3)])
def test_logits_are_computed_once_and_nothing_for_a_frozen_matrix(differentiate, matmuls):
    flops = compiled(differentiate).cost_analysis()["flops"]
    one_matmul = 2 * 8 * CHUNK * WORDS  # XLA counts the loop over chunks once
    elementwise = flops - matmuls * one_matmul
    assert 0 < elementwise < one_matmul
