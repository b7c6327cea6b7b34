"""Layouts of packed rows on eight simulated devices: steps, gradients and held-out losses are those of one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax import data
from anchorjax.attention.parallel import STRATEGIES
from anchorjax.config import Config
from anchorjax.data.rows.balance import Layout
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.masks import allowed
from anchorjax.sharding import abstract, shard_batch
from anchorjax.training.evaluate import Evaluator
from anchorjax.training.probe import probe_attention
from anchorjax.training.setup import Setup
from anchorjax.training.state import init_state
from anchorjax.types import CONTEXT_LAYOUTS, Batch
from tests import tiny
from tests.training.making import assert_trees_close, make_mesh, make_state, make_steps

B, T, TILE = 8, 256, 8
ONE = make_mesh()
MESHES = ((1, 4, 2, 1), (2, 1, 4, 1), (1, 1, 8, 1))
# Strategies by which a device attends from its own queries alone: the others have even work in any order. One of them
# is tried on every mesh.
WITH_LAYOUT = [name for name, module in STRATEGIES.items() if module.tokens(T, 2)[0] < T]
CASES = [(name, sizes) for name in WITH_LAYOUT for sizes in (MESHES if name == "all_gather" else MESHES[1:2])]


def config_of(**overrides) -> Config:
    """Packed rows of pieces of documents, grouped-query attention, layers with and without a window, accumulation."""
    return tiny.config(
        **{
            "data__seq_len": T,
            "data__batch_size": B,
            "data__packing": "best_fit",
            "data__interleave": 2,
            "model__num_heads": 4,
            "model__sliding_window": 20,
            "model__global_every": 2,
            "attention__implementation": "xla",
            "attention__q_tile": TILE,
            "attention__kv_tile": TILE,
            "train__grad_accum_steps": 2,
            # An update in proportion to the gradient, see test_step.py.
            "optimizer__eps": 1.0,
            "optimizer__warmup_steps": 0,
            "optimizer__clip_norm": 0.0,
        }
        | overrides
    )


@functools.cache
def documents() -> data.TokenStore:
    """2000 tokens in documents of 3 to 200."""
    lengths = np.array([200, 3, 77, 12, 150, 41, 9, 120, 30, 5, 90, 63] * 4)
    tokens = np.random.default_rng(0).integers(0, 250, lengths.sum())
    return data.TokenStore(tokens, np.concatenate([[0], np.cumsum(lengths)]), "test")


def layout_of(sizes: tuple[int, ...], name: str, parts: int = 2) -> Layout:
    return Layout(name, sizes[2], TILE, ((None, 1), (20, 1)), sizes[0] * sizes[1], parts)


def batch_of(layout: Layout) -> Batch:
    batches = data.train_batches(documents(), ByteTokenizer(), config_of().data, seed=1, start_step=0, layout=layout)
    batch = next(batches)
    batches.close()
    return batch


@functools.cache
def compiled_step(sizes: tuple[int, ...], strategy: str):
    """The step, which takes rows of any layout, and the first state on this mesh."""
    steps, mesh = make_steps(config_of(mesh__context_strategy=strategy)), make_mesh(*sizes)
    with jax.set_mesh(ONE):
        first = make_state(steps)
    with jax.set_mesh(mesh):
        layout = abstract(lambda: init_state(0, steps.spec, steps.optimizer))
        return jax.jit(steps.train), jax.device_put(first, jax.tree.map(lambda leaf: leaf.sharding, layout))


def step_of(sizes: tuple[int, ...], strategy: str, batch: Batch):
    """(next state, metrics); the first moment in the state holds the gradients."""
    train, state = compiled_step(sizes, strategy)
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        return train(state, shard_batch(batch, mesh))


@functools.cache
def step_of_one_device():
    return step_of((1, 1, 1, 1), "all_gather", batch_of(Layout()))


@pytest.mark.parametrize("name", CONTEXT_LAYOUTS)
@pytest.mark.parametrize(("strategy", "sizes"), CASES, ids=str)
def test_any_layout_takes_the_step_of_one_device(strategy, sizes, name):
    batch = batch_of(layout_of(sizes, name))
    assert np.any(np.diff(batch.index_BT) != 1) == (name != "contiguous")
    state, metrics = step_of(sizes, strategy, batch)
    expected_state, expected_metrics = step_of_one_device()
    assert_trees_close(metrics, expected_metrics, rtol=1e-5)
    assert_trees_close(state, expected_state, rtol=1e-5, atol=1e-7)


def test_the_same_rows_in_another_order():
    """A layout changes neither the rows of a step nor what belongs to a token."""
    plain, laid_out = (batch_of(layout) for layout in (Layout(), layout_of(MESHES[0], "documents")))
    order_BT = np.argsort(laid_out.index_BT, axis=1)
    back = {name: np.take_along_axis(x, order_BT, 1) for name, x in vars(laid_out).items()}
    rows = [int(np.flatnonzero((plain.tokens_BT == row).all(1))[0]) for row in back["tokens_BT"]]
    assert sorted(rows) == list(range(B)) and rows != list(range(B))
    for name, x in back.items():
        np.testing.assert_array_equal(x, getattr(plain, name)[rows], err_msg=name)


def test_micro_batches_have_rows_of_like_work():
    """As the step cuts them: the lighter of its parts has no row that is heavier than one of the other."""
    sizes = MESHES[0]
    layout, steps = layout_of(sizes, "documents"), make_steps(config_of())
    batch = batch_of(layout)
    with jax.set_mesh(make_mesh(*sizes)):
        first = np.asarray(steps.first_part(shard_batch(batch, make_mesh(*sizes))).segment_ids_BT)
    order_BT = np.argsort(batch.index_BT, axis=1)
    work_B = [layout.work(row).sum() for row in np.take_along_axis(batch.segment_ids_BT, order_BT, 1)]
    is_first_B = [any(np.array_equal(row, of_part) for of_part in first) for row in batch.segment_ids_BT]
    assert sum(is_first_B) == B // 2
    lightest = min(work for work, is_first in zip(work_B, is_first_B, strict=True) if is_first)
    assert all(work <= lightest for work, is_first in zip(work_B, is_first_B, strict=True) if not is_first)


@pytest.mark.parametrize("name", ["documents", "zigzag"])
def test_attention_keeps_its_mask_in_any_layout(name):
    sizes = (1, 2, 4, 1)
    steps, mesh = make_steps(config_of()), make_mesh(*sizes)
    with jax.set_mesh(mesh):
        assert probe_attention(shard_batch(batch_of(layout_of(sizes, name)), mesh), steps.spec) > 5


def test_gradients_reach_earlier_tokens_of_the_document_alone():
    """Each token has an id of its own: which rows of the embedding get a gradient says who was seen."""
    sizes = (1, 1, 4, 1)
    steps, mesh = make_steps(config_of(model__sliding_window=0, model__global_every=0)), make_mesh(*sizes)
    batch = jax.tree.map(lambda x: x[:1], batch_of(layout_of(sizes, "documents")))
    batch = dataclasses.replace(batch, tokens_BT=batch.index_BT)
    index_T, segment_ids_T = batch.index_BT[0], batch.segment_ids_BT[0]
    longest = np.bincount(segment_ids_T[segment_ids_T > 0]).argmax()
    index = np.sort(index_T[segment_ids_T == longest])[30]
    is_query_T = index_T == index
    seen_T = allowed(index, index_T, longest, segment_ids_T, 1)

    def hidden(params, batch):
        arrays = batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT, steps.spec, None, batch.index_BT
        return jnp.sum(jnp.where(is_query_T[:, None], params.hidden(*arrays), 0))

    with jax.set_mesh(mesh):
        params = make_state(steps).params
        gradient_VD = np.asarray(jax.jit(jax.grad(hidden))(params, shard_batch(batch, mesh)).embed_VD[...])
    reached = np.flatnonzero(np.any(gradient_VD != 0, axis=1))
    assert reached.tolist() == np.sort(index_T[seen_T]).tolist() and len(reached) == 32


def test_a_held_out_loss_and_its_buckets_are_those_of_rows_in_order():
    sizes = (1, 2, 4, 1)
    steps, mesh = make_steps(config_of()), make_mesh(*sizes)
    found = []
    with jax.set_mesh(mesh):
        params, evaluate = make_state(steps).params, Evaluator(steps, np.ones(320, np.int32), mesh)
        for layout in (None, layout_of(sizes, "documents")):
            batches = list(data.eval_rows(documents(), ByteTokenizer(), steps.config.data, 12, layout=layout))
            assert np.any(np.diff(batches[0].index_BT) != 1) == (layout is not None)
            found.append(evaluate(params, batches))
    assert found[1]["targets"] == found[0]["targets"] and len(found[0]["by_position"]) == 3
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-6)
    for name in ("by_position", "by_context"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-6)


def test_a_run_lays_its_rows_out_by_its_mesh():
    layout = Setup.make(config_of(mesh__fsdp=2, mesh__context=4)).layout
    assert layout == Layout("documents", 4, TILE, ((None, 1), (20, 1)), 2, 2)
    other = config_of(mesh__fsdp=2, mesh__context=4, mesh__context_strategy="ulysses")
    assert Setup.make(other).layout.shards == 1


@pytest.mark.parametrize("rows", [(0, 1, 2, 3), (2, 3), (7,)])
def test_processes_make_parts_of_one_batch(rows):
    """From their own rows alone, and from any step on: the order of rows and tokens depends on no process."""
    layout, config = layout_of(MESHES[0], "documents"), config_of().data

    def first(start_step: int, rows=None, number: int = 1) -> Batch:
        batches = data.train_batches(
            documents(), ByteTokenizer(), config, seed=1, start_step=start_step, rows=rows, layout=layout
        )
        found = [next(batches) for _ in range(number)][-1]
        batches.close()
        return found

    whole, part = first(0, number=3), first(2, rows)
    for name, x in vars(part).items():
        np.testing.assert_array_equal(x, getattr(whole, name)[list(rows)], err_msg=name)
