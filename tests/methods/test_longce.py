"""LongCE: the paper's numbers, windows of the evaluation, and training steps against windows that run one by one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.config import recipe, resolve
from anchorjax.data.rows.balance import Layout
from anchorjax.errors import ConfigError
from anchorjax.evaluation.windows import short_contexts
from anchorjax.models.decoder import logits
from anchorjax.models.linear import named_leaves
from anchorjax.sharding import BATCH, abstract, put, shard_batch
from anchorjax.training import objectives
from anchorjax.training.objectives import longce
from anchorjax.training.objectives.longce import NOT_SCORED, LongCE, in_documents, places
from anchorjax.training.state import init_state
from anchorjax.types import CONTEXT_STRATEGIES, Batch
from configs.methods import longce as longce_recipe
from tests import tiny
from tests.training.making import make_batch, make_mesh, make_state, make_steps

B, T, K, W = 4, 64, 7, 5
ON = {"train__objective": "longce", "train__longce_context": K, "train__longce_stride": W}
# Layers with and without a window, soft caps, scaled logits, chunks that do not divide what is scored.
FEATURES = {
    "model__num_heads": 4,
    "model__sliding_window": 9,
    "model__global_every": 2,
    "model__attention_soft_cap": 3.0,
    "model__final_soft_cap": 4.0,
    "attention__logit_scale": "scalable_softmax",
    "attention__logit_scale_by": "visible",
    "attention__logit_scale_length": 32,
    "attention__logit_scale_from": 1,
    "attention__q_tile": 8,
    "attention__kv_tile": 8,
    "train__loss_chunk": 11,
    "data__batch_size": B,
}
ONE = make_mesh()


def config_of(**overrides):
    return tiny.config(**(ON | FEATURES | overrides))


def rows_of(mask: str = "anchor") -> Batch:
    """Rows of one document, of three, of two in pieces among one another, and of documents that are too short."""
    made, index = make_batch(B, T), np.arange(T)
    segments = np.ones((B, T), np.int32)
    segments[1] = 1 + np.searchsorted([21, 45], index, side="right")
    segments[2] = np.where(index < 60, 1 + index // 4 % 2, -1)
    segments[3] = 1 + np.searchsorted([6, 12, 18, 27, 31], index, side="right")
    if mask == "full":
        segments = np.where(segments > 0, 0, -1).astype(np.int32)
    segments[:, 0] = 0
    is_target = (np.random.default_rng(1).random((B, T)) < 0.8) & (segments != -1) & (index > 0)
    return dataclasses.replace(made, segment_ids_BT=segments, is_target_BT=is_target)


def dense_spec(config):
    spec = make_steps(config).spec
    return dataclasses.replace(spec, attention=dataclasses.replace(spec.attention, implementation="reference"))


def short_by_definition(config, params, batch: Batch) -> np.ndarray:
    """CE_short [B, T] of rows in their own order, each window alone in a dense model; NaN where none scores."""
    steps, mask = make_steps(config), config.data.mask
    spec = dataclasses.replace(
        steps.spec, attention=dataclasses.replace(steps.spec.attention, implementation="reference")
    )
    dense = jax.jit(lambda *arrays: logits(params.hidden(*arrays, spec), params.unembedding_DV(spec), 4.0))
    short_BT = np.full((B, T), np.nan)
    length = config.train.longce_context + config.train.longce_stride  # with padding behind short windows: one program
    for b in range(B):
        tokens, segments, is_target = batch.tokens_BT[b], batch.segment_ids_BT[b], batch.is_target_BT[b]
        for document in set(segments[1:].tolist()) - {-1}:
            place = 1 + np.flatnonzero(segments[1:] == document)
            size = len(place) + is_target[place[-1]]  # the last token's target is one more token
            for window in short_contexts(size, config.train.longce_context, config.train.longce_stride):
                read = place[window.begin : window.end - 1]
                index, end = np.arange(length)[None], 1 + len(read)
                row = np.zeros_like(index)
                row[0, :end] = np.append(tokens[0], tokens[read])
                segment_ids = np.where(index < end, 0 if mask == "full" else np.minimum(index, 1), -1)
                arrays = row, index, segment_ids
                scores = np.asarray(dense(*(put(x.astype(np.int32), BATCH) for x in arrays))[0], np.float64)
                scored = place[window.first - 1 : window.end - 1]
                scores = scores[end - len(scored) : end]
                chosen = scores[np.arange(len(scored)), batch.targets_BT[b][scored]]
                short_BT[b, scored] = np.log(np.exp(scores).sum(-1)) - chosen
    return np.where(batch.is_target_BT, short_BT, np.nan)


@functools.cache
def reference(mask: str):
    """(rows, CE_short, weights, loss, gradient by leaf) of the definition on one device; weights are constants."""
    config, rows = config_of(data__mask=mask), rows_of(mask)
    steps = make_steps(config)
    with jax.set_mesh(ONE):
        params, batch = make_state(steps).params, shard_batch(rows, ONE)
        short_BT = short_by_definition(config, params, rows)
        plain = make_steps(dataclasses.replace(config, train=tiny.config().train))
        nats_BT = np.asarray(jax.jit(plain.nats)(params, batch), np.float64)
        weights_BT = np.where(np.isnan(short_BT), 1.0, np.minimum(np.exp(short_BT - nats_BT), 5.0))
        spec = dense_spec(config)

        def loss(params, batch):
            arrays = batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT
            scores = logits(params.hidden(*arrays, spec), params.unembedding_DV(spec), 4.0)
            is_target_word = jnp.arange(scores.shape[-1]) == batch.targets_BT[..., None]
            chosen = jnp.sum(jnp.where(is_target_word, scores, 0), -1)
            nats = jax.nn.logsumexp(scores, axis=-1) - chosen
            return jnp.sum(jnp.where(rows.is_target_BT, weights_BT * nats, 0)) / rows.is_target_BT.sum()

        value, gradient = jax.jit(jax.value_and_grad(loss))(params, batch)
    return rows, short_BT, weights_BT, float(value), host(gradient), params


def host(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(tree).items()}


def on_mesh(config, sizes, rows: Batch, params):
    """(aux [B, T], loss, gradient by leaf) of a training step."""
    steps, mesh = make_steps(config), make_mesh(*sizes)
    objective = objectives.make(config)
    with jax.set_mesh(mesh):
        layout = abstract(lambda: init_state(0, steps.spec, steps.optimizer)).params
        params = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, layout))
        batch = shard_batch(rows, mesh)
        aux = jax.jit(lambda params, batch: objective.prepare(params, batch, steps.spec))(params, batch)
        loss, gradient = jax.jit(steps._gradients)(params, batch, jax.random.key(0))
        return np.asarray(aux), float(loss), host(gradient)


def assert_is_the_reference(found, wanted, order=slice(None)):
    aux_BT, loss, gradient = found
    rows, short_BT, _, value, expected, _ = wanted
    short_BT = short_BT[:, order]
    np.testing.assert_array_equal((aux_BT >= 0) & rows.is_target_BT[:, order], ~np.isnan(short_BT))
    scored = ~np.isnan(short_BT)
    np.testing.assert_allclose(aux_BT[scored], short_BT[scored], rtol=2e-5)
    assert loss == pytest.approx(value, rel=1e-5)
    for name, leaf in expected.items():
        assert np.linalg.norm(gradient[name] - leaf) <= 1e-4 * np.linalg.norm(leaf), name


@pytest.mark.parametrize("mask", ["anchor", "intra_doc", "full"])
def test_a_step_is_that_of_windows_which_run_one_by_one(mask):
    wanted = reference(mask)
    rows, short_BT, weights_BT, *_, params = wanted
    assert np.isnan(short_BT[3]).sum() > np.isnan(short_BT[0]).sum() or mask == "full"
    assert np.ptp(weights_BT[~np.isnan(short_BT)]) > 0.02, "weights that hardly differ would prove nothing"
    assert_is_the_reference(on_mesh(config_of(data__mask=mask), (1, 1, 1, 1), rows, params), wanted)


@pytest.mark.parametrize("strategy", CONTEXT_STRATEGIES)
@pytest.mark.parametrize(("sizes", "layout"), [((1, 2, 2, 2), "zigzag"), ((1, 2, 4, 1), "documents")], ids=str)
def test_any_mesh_strategy_and_layout_take_the_same_step(sizes, layout, strategy):
    wanted = reference("anchor")
    rows, *_, params = wanted
    order = Layout(layout, sizes[2], 8).order(np.repeat([0, 1, 2], [1, 40, 23]))
    config = config_of(mesh__context_strategy=strategy, train__grad_accum_steps=2)
    laid_out = jax.tree.map(lambda x_BT: x_BT[:, order], rows)
    assert_is_the_reference(on_mesh(config, sizes, laid_out, params), wanted, order)


@pytest.mark.parametrize("tokens", [1, 30])
def test_windows_may_run_in_many_groups(monkeypatch, tokens):
    """One window at a time, and two: rows of three documents have more."""
    monkeypatch.setattr(longce, "GROUP_TOKENS", tokens)
    rows, *_, params = wanted = reference("anchor")
    assert_is_the_reference(on_mesh(config_of(), (1, 1, 1, 1), rows, params), wanted)


def test_oracle_of_the_paper():
    short_c, long_c = np.float32([2, 3, 0.5, 4]), np.float32([2, 1, 1.5, 1])
    objective = LongCE(4096, 1024, 5.0, "anchor", (8, 8), 1024)
    weights_c = np.asarray(objective.weigh(long_c, np.full(4, 0.25, np.float32), short_c)) * 4
    np.testing.assert_allclose(weights_c, [1, 5, np.exp(-1), 5], rtol=1e-6)
    assert (weights_c * long_c).mean() == pytest.approx(3.1379547, rel=1e-6)
    assert (weights_c * long_c).sum() / weights_c.sum() == pytest.approx(1.1041478, rel=1e-6), (
        "and this is not the loss"
    )


def test_weights_are_bounded_and_1_where_no_window_scores():
    objective = LongCE(4, 2, 5.0, "anchor", (8, 8), 1)
    short, long = np.float32([NOT_SCORED, NOT_SCORED, 0.0, 1e4, 90.0]), np.float32([0.0, 80.0, 60.0, 0.0, 90.0])
    weights = np.asarray(objective.weigh(long, np.ones(5, np.float32), short))
    assert weights.tolist() == [1.0, 1.0, pytest.approx(np.exp(-60.0), rel=1e-5), 5.0, 1.0]


def cut(segments_T, is_target_T, context: int, stride: int, order_T=None):
    """`in_documents` of tokens that are their own index."""
    index_T = np.arange(len(segments_T), dtype=np.int32)
    arrays = index_T, index_T + 1, np.asarray(is_target_T), np.asarray(segments_T, np.int32), index_T
    arrays = [x if order_T is None else x[order_T] for x in arrays]
    return [np.asarray(x) for x in in_documents(*map(jnp.asarray, arrays), context, stride)]


def test_the_papers_row_takes_28_windows_and_143360_tokens():
    """One document of 32768 tokens behind its anchor; the last token has no target."""
    segments_T, is_target_T = np.minimum(np.arange(32769), 1), np.arange(32769) < 32768
    *_, end_T, _, _ = cut(segments_T, is_target_T, 4096, 1024)
    place_CL, scored = places(4096, 1024, 1)
    assert np.flatnonzero(end_T).tolist() == list(range(0, 28 * 1024, 1024))
    assert scored == 1024 and np.count_nonzero(end_T) * place_CL.size == 143360


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_windows_are_those_of_the_evaluation_inside_each_document(data):
    """The windows that hold a target, and no others, of documents in any pieces and tokens in any order."""
    T = 40
    segments_T = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=T, max_size=T)))
    if data.draw(st.booleans()):
        segments_T = np.sort(segments_T)
    segments_T[0] = 0
    is_target_T = np.array(data.draw(st.lists(st.booleans(), min_size=T, max_size=T))) & (segments_T >= 0)
    context, stride = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    order_T = np.random.default_rng(data.draw(st.integers(0, 9))).permutation(T)
    tokens_T, targets_T, end_T, first, place_T = cut(segments_T, is_target_T, context, stride, order_T)
    assert first == 0 and sorted(place_T.tolist()) == list(range(T))
    np.testing.assert_array_equal(order_T[place_T], tokens_T)
    np.testing.assert_array_equal(targets_T, tokens_T + 1)
    expected = []
    for document in sorted(set(segments_T[1:].tolist()) - {-1}):
        own = 1 + np.flatnonzero(segments_T[1:] == document)
        windows = short_contexts(len(own) + 1, context, stride)  # its last token may have a target
        expected += [own[w.begin :].tolist() for w in windows if is_target_T[own[w.first - 1 : w.end - 1]].any()]
    found = [tokens_T[begin : end_T[begin]].tolist() for begin in np.flatnonzero(end_T)]
    assert found == expected


@pytest.mark.parametrize(("context", "stride", "shards"), [(4096, 1024, 1), (4096, 1024, 4), (7, 5, 4), (1, 1, 2)])
def test_devices_along_context_share_a_window_evenly(context, stride, shards):
    place_CL, scored = places(context, stride, shards)
    there = place_CL[place_CL < longce._ABSENT]
    assert np.sort(there).tolist() == list(range(-1, context + stride - 1)) and place_CL[0, 0] == -1
    of_scored = place_CL[:, place_CL.shape[1] - scored :]
    assert np.sort(of_scored[of_scored < longce._ABSENT]).tolist() == list(range(context - 1, context + stride - 1))
    if shards == 4 and context > 7:
        keys = np.where(place_CL < longce._ABSENT, place_CL + 2, 0).sum(1)
        assert keys.max() / keys.min() < 1.001 and place_CL.size == context + stride


def test_with_documents_of_k_tokens_or_fewer_the_step_is_that_of_the_mean():
    """K = 44, and documents of 43: bit for bit."""
    segments = np.tile(np.minimum(1 + np.arange(T) // 44, 2), (B, 1)).astype(np.int32)
    segments[:, 0] = 0
    rows = dataclasses.replace(rows_of(), segment_ids_BT=segments)
    config = config_of(train__longce_context=44)
    params = reference("anchor")[-1]
    aux, loss, gradient = on_mesh(config, (1, 1, 1, 1), rows, params)
    mean = dataclasses.replace(config, train=dataclasses.replace(tiny.config().train, loss_chunk=11))
    _, plain_loss, plain = on_mesh(mean, (1, 1, 1, 1), rows, params)
    assert (aux == NOT_SCORED).all() and loss == plain_loss
    for name, leaf in plain.items():
        np.testing.assert_array_equal(gradient[name], leaf, err_msg=name)


def test_windows_do_not_cross_documents_and_nothing_is_dropped_out_in_them():
    config = config_of(model__dropout=0.5)
    rows, short_BT, *_, params = reference("anchor")
    steps, objective = make_steps(config), objectives.make(config)
    changed = rows.tokens_BT.copy()
    others = rows.segment_ids_BT[1:3] != 2
    others[:, 0] = False
    changed[1:3] = np.where(others, (changed[1:3] + 1) % 320, changed[1:3])
    with jax.set_mesh(ONE):
        prepare = jax.jit(lambda params, batch: objective.prepare(params, batch, steps.spec))
        before, after = (
            np.asarray(prepare(params, shard_batch(dataclasses.replace(rows, tokens_BT=tokens), ONE)))
            for tokens in (rows.tokens_BT, changed)
        )
    scored = before >= 0
    np.testing.assert_allclose(before[~np.isnan(short_BT)], short_BT[~np.isnan(short_BT)], rtol=2e-5)
    document = (rows.segment_ids_BT == 2) & np.isin(np.arange(B), [1, 2])[:, None]
    np.testing.assert_array_equal(before[document], after[document])
    changes = (before != after)[scored & ~document & np.isin(np.arange(B), [1, 2])[:, None]]
    assert changes.mean() > 0.9 and (scored & document).sum() > 20


def test_adapters_alone_get_gradients():
    config = config_of(lora__rank=2, lora__targets=("q", "v"))
    steps, rows = make_steps(config), rows_of()
    with jax.set_mesh(ONE):
        state = make_state(steps)
        batch = shard_batch(rows, ONE)
        loss, gradient = jax.jit(steps._gradients)(state.params, batch, state.key)
        short_BT = short_by_definition(config, state.params, rows)
        nats_BT = np.asarray(jax.jit(steps.nats)(state.params, batch), np.float64)
    gradient = host(gradient)
    # A learned scale is trained beside adapters.
    adapters = {name for name in gradient if "_adapter." in name}
    assert adapters and set(gradient) - adapters == {"blocks.attention.logit_scale_N"}, (
        "which is trained beside adapters"
    )
    assert any(np.abs(gradient[name]).max() > 0 for name in adapters)
    weights_BT = np.where(np.isnan(short_BT), 1.0, np.minimum(np.exp(short_BT - nats_BT), 5.0))
    expected = (weights_BT * nats_BT)[rows.is_target_BT].mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("key", "overrides", "allowed"),
    [
        ("train.longce_context", {"train__longce_context": 63}, "less than data.seq_len - 1 = 63"),
        ("train.longce_stride", {"train__longce_context": 40, "train__longce_stride": 25}, "at most 24"),
        ("train.longce_limit", {"train__longce_limit": 0.0}, "above 0"),
        ("train.longce_context", {"train__objective": "mean"}, "only train.objective=longce uses it"),
    ],
)
def test_refusals_name_the_key(key, overrides, allowed):
    with pytest.raises(ConfigError, match=allowed) as caught:
        config_of(**overrides)
    assert caught.value.key == key


def test_a_run_whose_targets_all_see_too_little_is_refused():
    config = config_of(train__longce_context=40)
    with pytest.raises(ConfigError, match="all see fewer than 32 keys") as caught:
        objectives.make(config, np.array([8, 40, 100, 300, 200, 0, 0]))
    assert caught.value.key == "train.longce_context"
    assert objectives.make(config, np.array([8, 40, 100, 300, 200, 1, 0])).context == 40


def test_recipe_is_the_papers_at_its_length():
    config = recipe("methods/longce")
    assert (config.train.longce_context, config.train.longce_stride) == (256, 64)
    config.data.seq_len = 32768
    train = resolve(longce_recipe.method(config).to_dict()).train
    assert (train.objective, train.longce_context, train.longce_stride, train.longce_limit) == ("longce", 4096, 1024, 5)
