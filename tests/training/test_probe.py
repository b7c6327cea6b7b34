"""The leakage probe at the start of training: on the run's mesh, and before the first step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anchorjax import data
from anchorjax.attention import anchors
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.errors import LeakageError
from anchorjax.sharding import BATCH, shard_batch
from anchorjax.training import loop
from anchorjax.training.probe import probe_attention
from anchorjax.training.setup import Setup
from anchorjax.types import CONTEXT_STRATEGIES
from tests.training.making import make_batch, make_mesh, make_steps


@pytest.fixture(params=CONTEXT_STRATEGIES)
def started(tiny_config, request):
    """(sharded batch, spec) inside a mesh of two devices along three axes, of a model whose heads they split."""
    config = tiny_config(model__num_heads=4, mesh__context_strategy=request.param)
    steps, mesh = make_steps(config), make_mesh(2, 1, 2, 2)
    with jax.set_mesh(mesh):
        yield shard_batch(make_batch(2, 64), mesh), steps.spec


def test_a_sound_attention_passes(started):
    assert probe_attention(*started) > 5


def test_interleaved_documents_with_tags_pass(tiny_config):
    config = tiny_config(data__packing="best_fit", data__interleave=3, data__tags=True)
    store = data.TokenStore(np.arange(4000) % 250, np.arange(0, 4001, 10), "test")
    batches = data.train_batches(store, ByteTokenizer(), config.data, seed=1, start_step=0)
    batch, steps, mesh = next(batches), make_steps(config), make_mesh(2, 1, 2, 2)
    batches.close()
    assert np.any(np.diff(batch.segment_ids_BT[batch.segment_ids_BT > 0]) < 0), "no document is in pieces"
    with jax.set_mesh(mesh):
        assert probe_attention(shard_batch(batch, mesh), steps.spec) > 5


def test_the_probe_of_a_run_sees_one_micro_batch(tiny_config, data_dir, tmp_path, monkeypatch):
    """16 rows in two parts on eight devices: each device gives its own first row, before the first step."""
    config = tiny_config(data__data_dir=data_dir, data__batch_size=16, train__grad_accum_steps=2)
    tokenizer = data.load_tokenizer(config.data)
    store = data.load_store(config.data, "train", tokenizer)
    layout = Setup.make(config).layout
    assert (layout.groups, layout.parts) == (8, 2)
    batches = data.train_batches(store, tokenizer, config.data, seed=config.seed, start_step=0, layout=layout)
    batch, seen = next(batches), []
    batches.close()

    def probe(batch, *rest):
        seen.append(batch)
        raise LeakageError("seen")

    monkeypatch.setattr(loop, "probe_attention", probe)
    monkeypatch.setattr("signal.signal", lambda *args: None)  # the handlers of this process stay
    with pytest.raises(LeakageError, match="seen"):
        loop.run(config, tmp_path)
    (probed,) = seen
    np.testing.assert_array_equal(probed.tokens_BT, batch.tokens_BT[::2])
    assert probed.tokens_BT.sharding.spec == BATCH
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


def test_an_attention_that_forgets_the_anchor_is_named(started, monkeypatch):
    right = anchors.visible
    monkeypatch.setattr(anchors, "visible", lambda mask: right(mask) & False)
    with pytest.raises(LeakageError, match="token 0 of row 0 does not reach token"):
        probe_attention(*started)


def test_a_backward_pass_that_forgets_the_anchor_is_named(started, monkeypatch):
    right = anchors.gradients
    monkeypatch.setattr(anchors, "gradients", lambda *args: jax.tree.map(jnp.zeros_like, right(*args)))
    with pytest.raises(LeakageError, match=r"the gradient of token .* does not reach token 0 of row"):
        probe_attention(*started)
