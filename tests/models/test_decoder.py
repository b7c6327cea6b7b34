"""The decoder: who influences whom, by gradient; sharding; and against a Llama that we did not write."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax import sharding
from anchorjax.config import AttentionConfig, ModelConfig
from anchorjax.models.decoder import Decoder, Shape, logits

T = 48
SMALL = dict(  # noqa: C408 - a table of keys
    num_layers=2, model_width=32, ffn_width=48, num_heads=4, num_kv_heads=2, head_width=8, vocab_size=64,
    rope_theta=1e4, rope_dtype="float32", norm_eps=1e-5, tie_embeddings=True, dropout=0.0,
    compute_dtype="float32", param_dtype="float32", remat="none",
)  # fmt: skip
#             A  document 1     document 2     document 3      pads
SEGMENTS = np.array([0] + [1] * 15 + [2] * 10 + [3] * 16 + [-1] * 6, np.int32)


def shape_of(implementation="xla", **changes) -> Shape:
    return Shape(ModelConfig(**(SMALL | changes)), AttentionConfig(implementation, 8, 16), max_position=T)


def batch(rows: int = 2) -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens = np.random.default_rng(0).integers(0, 64, (rows, T)).astype(np.int32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (rows, T))
    mesh = jax.sharding.get_mesh()
    put = functools.partial(jax.device_put, device=jax.NamedSharding(mesh, sharding.BATCH))
    return put(tokens), put(positions), put(np.broadcast_to(SEGMENTS, (rows, T)))


def make(shape: Shape) -> Decoder:
    return jax.jit(lambda key: Decoder(key, shape.model))(jax.random.key(1))


@functools.partial(jax.jit, static_argnames=("shape", "num_anchors"))
def run(params, tokens, positions, segments, shape, num_anchors=1):
    hidden = params.hidden(tokens, positions, segments, num_anchors, shape)
    return logits(hidden, params.unembedding_DV(shape.model))


def influence(shape: Shape, num_anchors: int = 1) -> np.ndarray:
    """[T, T]: does logits[t] have a gradient in the embedding of token s?"""
    _, positions, segments = batch(rows=1)
    ids = jax.device_put(np.arange(T, dtype=np.int32)[None], segments.sharding)  # each token its own embedding
    direction = jax.random.normal(jax.random.key(2), (64,))

    @jax.jit
    def all_rows(params, ids, positions, segments):
        def row_of_influence(t):
            def probe(params):
                logits_BTV = run(params, ids, positions, segments, shape, num_anchors)
                return jnp.einsum("btv,t,v->", logits_BTV, jax.nn.one_hot(t, T), direction)

            return jnp.linalg.norm(jax.grad(probe)(params).embed_VD[...], axis=-1)[:T]

        return jax.lax.map(row_of_influence, jnp.arange(T))

    return np.array(all_rows(make(shape), ids, positions, segments))


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_gradients_are_exactly_zero_outside_the_mask(implementation, one_device):
    """Zero from later tokens and other documents, non-zero from the anchor and from one's own document."""
    seen = influence(shape_of(implementation, tie_embeddings=False))
    index = np.arange(T)
    same = (SEGMENTS[:, None] == SEGMENTS) & (index[:, None] >= index)
    wanted = (same | (index == 0)) & (SEGMENTS != -1) & (SEGMENTS[:, None] != -1)
    wanted |= np.eye(T, dtype=bool)  # the residual stream: a token's own embedding, pads included
    np.testing.assert_array_equal(seen > 0, wanted)


def test_without_anchors_the_first_token_reaches_nobody(one_device):
    seen = influence(shape_of(tie_embeddings=False), num_anchors=0)
    assert (seen[1:, 0] == 0).all() and seen[0, 0] > 0


def test_packed_documents_equal_documents_alone(one_device):
    """Each document, run alone behind the anchor at its own positions, has the logits of the packed row."""
    shape, params = shape_of(), make(shape_of())
    tokens, positions, segments = (np.array(x) for x in batch(rows=1))
    put = functools.partial(jax.device_put, device=batch(1)[0].sharding)
    packed = np.array(run(params, put(tokens), put(positions), put(segments), shape))
    for document in (1, 2, 3):
        keep = (SEGMENTS == document) | (SEGMENTS == 0)
        alone_segments = np.where(keep, segments, -1)  # every other token becomes a pad
        alone = run(params, put(np.where(keep, tokens, 0)), put(positions), put(alone_segments), shape)
        np.testing.assert_allclose(np.array(alone)[0, keep][1:], packed[0, keep][1:], atol=1e-5)


def loss_and_gradients(shape: Shape, mesh_shape: tuple[int, ...]):
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, mesh_shape, strict=True)), jax.devices()[: np.prod(mesh_shape)])
    with jax.set_mesh(mesh):
        params = make(shape)
        arrays = batch(rows=4)

        def loss(params, *arrays):
            return jnp.mean(jax.nn.logsumexp(run(params, *arrays, shape), -1) ** 2)

        value, grads = jax.jit(jax.value_and_grad(loss))(params, *arrays)
        return float(value), jax.tree.map(np.asarray, grads)


@pytest.fixture(scope="module")
def on_one_device():
    return loss_and_gradients(shape_of(), (1, 1, 1, 1))


@pytest.mark.parametrize("mesh_shape", [(4, 1, 2, 1), (1, 4, 1, 2), (2, 1, 2, 2), (1, 2, 2, 2)])
def test_every_mesh_gives_one_device_s_loss_and_gradients(mesh_shape, on_one_device):
    value, grads = loss_and_gradients(shape_of(), mesh_shape)
    assert abs(value - on_one_device[0]) < 1e-5
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(on_one_device[1]), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("remat", ["attention", "full"])
def test_remat_changes_nothing(remat, on_one_device):
    value, grads = loss_and_gradients(shape_of(remat=remat), (1, 1, 1, 1))
    assert abs(value - on_one_device[0]) < 1e-6
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(on_one_device[1]), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_remat_attention_does_not_run_attention_again(one_device):
    """Its forward loop over key tiles occurs once in the gradient's program with "attention", twice with "full"."""

    def loops(remat):
        shape = shape_of(remat=remat)
        gradient = jax.grad(lambda params, *arrays: jnp.sum(run(params, *arrays, shape)))
        return str(jax.make_jaxpr(gradient)(make(shape), *batch())).count("while[")

    assert loops("none") == loops("attention") < loops("full")


def test_weights_and_their_sharding():
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, (1, 2, 2, 2), strict=True)))
    with jax.set_mesh(mesh):
        params = make(shape_of(tie_embeddings=False))
    P = jax.sharding.PartitionSpec
    assert params.blocks.attention.q_DNH.get_value().sharding.spec == P(None, "fsdp", "tensor", None)
    assert params.blocks.ffn.down_FD.get_value().sharding.spec == P(None, "tensor", "fsdp")
    assert params.embed_VD.get_value().sharding.spec == P("tensor", "fsdp")
    D, F, H, N, K, V, L = 32, 48, 8, 4, 2, 64, 2
    wanted = 2 * V * D + D + L * (2 * D * H * (N + K) + 3 * D * F + 2 * D)
    assert sum(x.size for x in jax.tree.leaves(params)) == wanted
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


def test_compute_dtype_is_that_of_the_activations(one_device):
    shape = shape_of(compute_dtype="bfloat16")
    params, (tokens, positions, segments) = make(shape), batch()
    hidden = jax.eval_shape(lambda *args: params.hidden(*args, 1, shape), tokens, positions, segments)
    assert hidden.dtype == jnp.bfloat16
    assert jax.eval_shape(lambda *args: run(*args, shape), params, tokens, positions, segments).dtype == jnp.float32
