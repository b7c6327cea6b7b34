"""The decoder: against the formulas in float64; who influences whom, by gradient; sharding."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax import sharding
from anchorjax.models import decoder
from anchorjax.models.decoder import Decoder, logits
from anchorjax.models.layers import dropout
from anchorjax.models.linear import named_leaves
from anchorjax.models.spec import Spec
from tests.models import making

T = 48
SMALL = dict(  # noqa: C408 - a table of keys
    num_layers=2, d_model=32, d_ff=48, num_heads=4, num_kv_heads=2, head_dim=8, vocab_size=64,
    norm_eps=1e-5, compute_dtype="float32", remat="none",
)  # fmt: skip
#             A  document 1     document 2     document 3      pads
SEGMENTS = np.array([0] + [1] * 15 + [2] * 10 + [3] * 16 + [-1] * 6, np.int32)


def spec_of(implementation="xla", tiles=(8, 16), rope=None, num_anchors=1, **changes) -> Spec:
    options = {"implementation": implementation, "tiles": tiles, "rope": rope, "num_anchors": num_anchors}
    return making.spec_of(SMALL | changes, **options, max_position=T)


def batch(rows: int = 2) -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens = np.random.default_rng(0).integers(0, 64, (rows, T)).astype(np.int32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (rows, T))
    mesh = jax.sharding.get_mesh()
    put = functools.partial(jax.device_put, device=jax.NamedSharding(mesh, sharding.BATCH))
    return put(tokens), put(positions), put(np.broadcast_to(SEGMENTS, (rows, T)))


def make(spec: Spec) -> Decoder:
    return jax.jit(lambda key: Decoder(key, spec))(jax.random.key(1))


@functools.partial(jax.jit, static_argnames="spec")
def run(params, tokens, positions, segments, spec):
    hidden = params.hidden(tokens, positions, segments, spec)
    return logits(hidden, params.unembedding_DV(spec), spec.model.final_soft_cap)


def influence(spec: Spec) -> np.ndarray:
    """[T, T]: does logits[t] have a gradient in the embedding of token s?"""
    _, positions, segments = batch(rows=1)
    ids = jax.device_put(np.arange(T, dtype=np.int32)[None], segments.sharding)  # each token its own embedding
    direction = jax.random.normal(jax.random.key(2), (64,))

    @jax.jit
    def all_rows(params, ids, positions, segments):
        def row_of_influence(t):
            def probe(params):
                logits_BTV = run(params, ids, positions, segments, spec)
                return jnp.einsum("btv,t,v->", logits_BTV, jax.nn.one_hot(t, T), direction)

            return jnp.linalg.norm(jax.grad(probe)(params).embed_VD[...], axis=-1)[:T]

        return jax.lax.map(row_of_influence, jnp.arange(T))

    return np.array(all_rows(make(spec), ids, positions, segments))


def float64_logits(params, tokens_T, positions_T, segments_T, spec: Spec) -> np.ndarray:
    """The decoder by the words of its papers: numpy, float64, one row, one query and head at a time."""
    weights = {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(params).items()}
    config = spec.model
    H, group = config.head_dim, config.num_heads // config.num_kv_heads

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps) * scale

    def rope(x, position):
        angle = position * spec.rope.theta ** (-2 * np.arange(H // 2) / H)
        low, high = x[: H // 2], x[H // 2 :]
        return np.concatenate([low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)])

    def attention(x, w):
        q, k, v = (np.einsum("td,dnh->tnh", x, w(name)) for name in ("q_DNH", "k_DKH", "v_DKH"))
        q, k = (np.array([[rope(h, p) for h in t] for t, p in zip(y, positions_T, strict=True)]) for y in (q, k))
        out = np.zeros_like(q)
        for t, n in np.ndindex(q.shape[:2]):
            keys = [s for s in range(t + 1) if s == 0 or segments_T[s] == segments_T[t]]
            logit = k[keys, n // group] @ q[t, n] / np.sqrt(H)
            out[t, n] = np.exp(logit - logit.max()) @ v[keys, n // group] / np.exp(logit - logit.max()).sum()
        return np.einsum("tnh,nhd->td", out, w("o_NHD"))

    x = weights["embed_VD"][tokens_T]
    for layer in range(config.num_layers):
        block = lambda name: weights[f"blocks.{name}"][layer]  # noqa: B023, E731
        x = x + attention(norm(x, block("attention_norm_D")), lambda name: block(f"attention.{name}"))  # noqa: B023
        y = norm(x, block("ffn_norm_D"))
        gate = y @ block("ffn.gate_DF")
        x = x + (gate / (1 + np.exp(-gate)) * (y @ block("ffn.up_DF"))) @ block("ffn.down_FD")
    return norm(x, weights["final_norm_D"]) @ weights.get("unembed_DV", weights["embed_VD"].T)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_formulas_in_float64(one_device, tied):
    """With a base, an epsilon, positions and norm scales that are nobody's default."""
    spec = spec_of(rope={"theta": 37.0}, norm_eps=0.02, tie_embeddings=tied)
    noise = lambda path, x: x + 0.3 * jax.random.normal(jax.random.key(len(str(path))), x.shape)  # noqa: E731
    params = jax.tree_util.tree_map_with_path(noise, make(spec))
    tokens, _, _ = batch(rows=1)
    positions = np.random.default_rng(3).permutation(T).astype(np.int32)[None]
    segments = np.where(SEGMENTS == -1, 4, SEGMENTS)[None]
    got = run(params, tokens, *(jax.device_put(x, tokens.sharding) for x in (positions, segments)), spec)
    wanted = float64_logits(params, np.array(tokens[0]), positions[0], segments[0], spec)
    np.testing.assert_allclose(got[0], wanted, atol=2e-4 * np.abs(wanted).max())


def test_rope_dtype_reaches_the_rotation(one_device):
    params = make(spec_of())
    shapes = (spec_of(rope={"dtype": dtype}) for dtype in ("float32", "bfloat16"))
    exact, rounded = (np.array(run(params, *batch(), spec)) for spec in shapes)
    assert 1e-4 < np.abs(exact - rounded).max() / np.abs(exact).max() < 0.1


def test_bfloat16_gradients_stay_near_those_of_fp32_for_every_weight(one_device):
    """The embedding's is a sum over the row: rounded term by term it would stall on a frequent token."""
    tokens = jnp.zeros((1, 4096), jnp.int32).at[:, ::64].set(5)
    positions = jnp.arange(4096, dtype=jnp.int32)[None] % T
    put = functools.partial(jax.device_put, device=batch(1)[0].sharding)
    arrays = put(tokens), put(positions), put(jnp.arange(4096, dtype=jnp.int32)[None] // 16)

    def gradients(dtype):
        spec = spec_of(tiles=(64, 64), num_anchors=0, compute_dtype=dtype)
        loss = lambda params: jnp.mean(jax.nn.logsumexp(run(params, *arrays, spec), -1) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss))(make(spec_of()))

    exact, rounded = (jax.tree_util.tree_leaves_with_path(gradients(dtype)) for dtype in ("float32", "bfloat16"))
    for (path, wanted), (_, got) in zip(exact, rounded, strict=True):
        relative = float(jnp.linalg.norm(got - wanted) / jnp.linalg.norm(wanted))
        assert relative < 0.05, (jax.tree_util.keystr(path), relative)


def test_dropout_keeps_its_share_and_its_mean_and_no_two_masks_are_alike(one_device):
    ones = jax.device_put(jnp.ones((2, 64, 64)), jax.NamedSharding(one_device, sharding.ACTIVATIONS))
    keys = [jax.random.key(0), jax.random.key(0), jax.random.key(1)]
    dropped = [np.array(dropout(ones, key, place, 0.2)) for key, place in zip(keys, (0, 1, 0), strict=True)]
    for x in dropped:
        assert set(np.unique(x)) == {0.0, np.float32(1.25)}
        assert abs((x == 0).mean() - 0.2) < 0.02
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 0.6 < (dropped[a] == dropped[b]).mean() < 0.76, "two masks agree more than chance lets them"


def test_layers_do_not_share_their_dropout_masks(one_device, monkeypatch):
    """The keys that reach `dropout`, seen from inside of the scan."""
    seen = []

    def record(x_BTD, key, place, rate):
        jax.debug.callback(lambda data: seen.append(bytes(data)), jax.random.key_data(jax.random.fold_in(key, place)))
        return x_BTD

    monkeypatch.setattr(decoder, "dropout", record)
    spec = spec_of(dropout=0.5)
    make(spec).hidden(*batch(), spec, jax.random.key(0))
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 2 * spec.model.num_layers


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_gradients_are_exactly_zero_outside_the_mask(implementation, one_device):
    """Zero from later tokens and other documents, non-zero from the anchor and from one's own document."""
    seen = influence(spec_of(implementation, tie_embeddings=False))
    index = np.arange(T)
    same = (SEGMENTS[:, None] == SEGMENTS) & (index[:, None] >= index)
    wanted = (same | (index == 0)) & (SEGMENTS != -1) & (SEGMENTS[:, None] != -1)
    wanted |= np.eye(T, dtype=bool)  # the residual stream: a token's own embedding, pads included
    np.testing.assert_array_equal(seen > 0, wanted)


def test_layers_with_a_window_hide_what_is_far(one_device):
    """Two layers: what lies beyond two windows is out of reach, unless one of them has none."""
    far = lambda index: index[:, None] - index  # noqa: E731
    index = np.arange(T)
    same = (SEGMENTS[:, None] == SEGMENTS) & (SEGMENTS != -1) & (index > 0) & (far(index) >= 0)
    local = influence(spec_of(tie_embeddings=False, sliding_window=4))
    assert (local[same & (far(index) <= 6)] > 0).all() and (local[same & (far(index) > 6)] == 0).all()
    assert (local[1:42, 0] > 0).all(), "anchors stay in sight"
    mixed = influence(spec_of(tie_embeddings=False, sliding_window=4, global_every=2))
    assert (mixed[same] > 0).all()


def test_without_anchors_the_first_token_reaches_nobody(one_device):
    seen = influence(spec_of(tie_embeddings=False, num_anchors=0))
    assert (seen[1:, 0] == 0).all() and seen[0, 0] > 0


def test_packed_documents_equal_documents_alone(one_device):
    """Each document, run alone behind the anchor at its own positions, has the logits of the packed row."""
    spec, params = spec_of(), make(spec_of())
    tokens, positions, segments = (np.array(x) for x in batch(rows=1))
    put = functools.partial(jax.device_put, device=batch(1)[0].sharding)
    packed = np.array(run(params, put(tokens), put(positions), put(segments), spec))
    for document in (1, 2, 3):
        keep = (SEGMENTS == document) | (SEGMENTS == 0)
        alone_segments = np.where(keep, segments, -1)  # every other token becomes a pad
        alone = run(params, put(np.where(keep, tokens, 0)), put(positions), put(alone_segments), spec)
        np.testing.assert_allclose(np.array(alone)[0, keep][1:], packed[0, keep][1:], atol=1e-5)


def loss_and_gradients(spec: Spec, mesh_shape: tuple[int, ...]):
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, mesh_shape, strict=True)), jax.devices()[: np.prod(mesh_shape)])
    with jax.set_mesh(mesh):
        params = make(spec)
        arrays = batch(rows=4)

        def loss(params, *arrays):
            return jnp.mean(jax.nn.logsumexp(run(params, *arrays, spec), -1) ** 2)

        value, grads = jax.jit(jax.value_and_grad(loss))(params, *arrays)
        return float(value), jax.tree.map(np.asarray, grads)


# All that families differ in, at once: windows in every other layer, caps, biases, norms.
EVERYTHING = dict(  # noqa: C408 - a table of keys
    activation="gelu_tanh", qkv_bias=True, qk_norm=True, post_norms=True, norm_offset=True, scale_embeddings=True,
    query_scale=5.0, attention_soft_cap=2.0, final_soft_cap=3.0, sliding_window=6, global_every=2, tie_embeddings=False,
)  # fmt: skip
FEATURES = [{}, EVERYTHING]


@pytest.fixture(scope="module", params=FEATURES, ids=["llama", "everything"])
def on_one_device(request):
    """(features, loss and gradients)."""
    return request.param, loss_and_gradients(spec_of(**request.param), (1, 1, 1, 1))


@pytest.mark.parametrize(
    "mesh_shape",
    [(1, 4, 1, 2), (2, 1, 2, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in ((4, 1, 2, 1), (1, 2, 2, 2)))],
)
def test_every_mesh_gives_one_device_s_loss_and_gradients(mesh_shape, on_one_device):
    features, wanted = on_one_device
    value, grads = loss_and_gradients(spec_of(**features), mesh_shape)
    assert abs(value - wanted[0]) < 1e-5
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted[1]), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("remat", ["attention", "full", "offload"])
def test_remat_changes_nothing(remat, on_one_device):
    features, wanted = on_one_device
    value, grads = loss_and_gradients(spec_of(remat=remat, **features), (1, 1, 1, 1))
    assert abs(value - wanted[0]) < 1e-6
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted[1]), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("features", FEATURES, ids=["llama", "everything"])
def test_remat_attention_does_not_run_attention_again(features, one_device):
    """Its forward loop over key tiles occurs once in the gradient's program with "attention", twice with "full"."""

    def loops(remat):
        spec = spec_of(remat=remat, **features)
        gradient = jax.grad(lambda params, *arrays: jnp.sum(run(params, *arrays, spec)))
        return str(jax.make_jaxpr(gradient)(make(spec), *batch())).count("while[")

    assert loops("none") == loops("attention") == loops("offload") < loops("full")


def test_remat_none_keeps_products_and_attention_alone(one_device):
    """What the pass over the layers leaves for the way back: no weights, and nothing that is cheap to do again."""
    spec = spec_of()
    gradient = jax.grad(lambda params, *arrays: jnp.sum(run(params, *arrays, spec)))
    scans = scans_of_layers(jax.make_jaxpr(gradient)(make(spec), *batch()).jaxpr, spec.model.num_layers)
    forward = next(scans)
    ends = zip(forward.outvars, forward.params["jaxpr"].jaxpr.outvars, strict=True)
    kept = sorted(one.aval.shape for whole, one in ends if whole.aval.shape != one.aval.shape)  # what it stacks
    B, D, F, H, N, K = 2, 32, 48, 8, 4, 2
    attention = [(B, T, N, H), (B, T, N)]
    products = [(B * T, N, H), (B * T, K, H), (B * T, K, H), (B * T, D), (B * T, F), (B * T, F)]
    assert kept == sorted([(B, T, D), *attention, *products])


def test_remat_offload_keeps_layer_inputs_and_attention_on_the_host(one_device):
    spec = spec_of(remat="offload")
    gradient = jax.grad(lambda params, *arrays: jnp.sum(run(params, *arrays, spec)))
    scans = scans_of_layers(jax.make_jaxpr(gradient)(make(spec), *batch()).jaxpr, spec.model.num_layers)
    forward = next(scans)
    ends = zip(forward.outvars, forward.params["jaxpr"].jaxpr.outvars, strict=True)
    kept = sorted((one.aval.shape, str(whole.aval.memory_space)) for whole, one in ends
                  if whole.aval.shape != one.aval.shape)  # fmt: skip
    B, D, H, N = 2, 32, 8, 4
    host = str(jax.memory.Space.Host)
    assert kept == sorted((shape, host) for shape in ((B, T, D), (B, T, N, H), (B, T, N)))


def scans_of_layers(jaxpr, layers: int):
    """The scans over layers within, outermost first."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] == layers:
            yield equation
        else:
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from scans_of_layers(inner, layers)


def test_weights_and_their_sharding():
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, (1, 2, 2, 2), strict=True)))
    with jax.set_mesh(mesh):
        params = make(spec_of(tie_embeddings=False))
    P = jax.sharding.PartitionSpec
    assert params.blocks.attention.q.weight.get_value().sharding.spec == P(None, "fsdp", "tensor", None)
    assert params.blocks.ffn.down.weight.get_value().sharding.spec == P(None, "tensor", "fsdp")
    assert params.embed_VD.get_value().sharding.spec == P(None, ("tensor", "fsdp"))
    D, F, H, N, K, V, L = 32, 48, 8, 4, 2, 64, 2
    wanted = 2 * V * D + D + L * (2 * D * H * (N + K) + 3 * D * F + 2 * D)
    assert sum(x.size for x in jax.tree.leaves(params)) == wanted
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


def test_compute_dtype_is_that_of_the_activations(one_device):
    spec = spec_of(compute_dtype="bfloat16")
    params, (tokens, positions, segments) = make(spec), batch()
    hidden = jax.eval_shape(lambda *args: params.hidden(*args, spec), tokens, positions, segments)
    assert hidden.dtype == jnp.bfloat16
    assert jax.eval_shape(lambda *args: run(*args, spec), params, tokens, positions, segments).dtype == jnp.float32
