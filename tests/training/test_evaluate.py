"""The evaluator's sums, against the same taken token by token in numpy."""

import math

import jax
import numpy as np
import pytest

from anchorjax.sharding import shard_batch
from anchorjax.training.evaluate import Evaluator, bucket_edges
from tests import tiny
from tests.training.making import make_batch, make_mesh, make_state, make_steps

STEPS = make_steps(tiny.config(data__seq_len=256, data__batch_size=4))


@pytest.fixture(scope="module")
def batches():
    return [make_batch(4, 256, seed=seed) for seed in (1, 2)]


def expected(nats_by_batch, batches, token_bytes_V):
    """Loops over tokens; the context of a token is its distance from where its segment began."""
    nats = targets = text_bytes = 0.0
    by_position, by_context = {}, {}
    edges = bucket_edges(256)
    for nats_BT, batch in zip(nats_by_batch, batches, strict=True):
        for b, row in enumerate(batch.segment_ids_BT):
            start = 0
            for t, segment in enumerate(row):
                if t and segment != row[t - 1]:
                    start = t
                weight = float(batch.is_target_BT[b, t])
                nats += weight * nats_BT[b, t]
                targets += weight
                text_bytes += weight * token_bytes_V[batch.targets_BT[b, t]]
                for table, place in ((by_position, t), (by_context, t - start)):
                    bucket = next(n for n, edge in enumerate(edges) if place < edge)
                    sums = table.setdefault(f"{[0, *edges][bucket]}-{edges[bucket]}", [0.0, 0.0])
                    sums[0] += weight * nats_BT[b, t]
                    sums[1] += weight
    loss = {"loss": nats / targets, "bits_per_byte": nats / math.log(2) / text_bytes, "targets": targets}
    for name, table in (("by_position", by_position), ("by_context", by_context)):
        loss[name] = {bucket: total / weight for bucket, (total, weight) in table.items() if weight}
    return loss


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2, 2, 1)], ids=str)
def test_sums_are_those_of_single_tokens(batches, sizes):
    token_bytes_V = np.random.default_rng(0).integers(0, 5, 320).astype(np.int32)
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        got = Evaluator(STEPS, token_bytes_V, mesh)(make_state(STEPS).params, iter(batches))
    with jax.set_mesh(make_mesh()):
        params, nats = make_state(STEPS).params, jax.jit(STEPS.nats)
        alone = [np.asarray(nats(params, shard_batch(batch, make_mesh())), np.float64) for batch in batches]
    wanted = expected(alone, batches, token_bytes_V)
    assert got["targets"] == wanted["targets"]
    for name in ("loss", "bits_per_byte"):
        assert math.isclose(got[name], wanted[name], rel_tol=1e-5)
    for name in ("by_position", "by_context"):
        assert got[name] == pytest.approx(wanted[name], rel=1e-5)


def test_no_target_is_an_error(batches):
    with jax.set_mesh(make_mesh()), pytest.raises(ValueError, match="no held-out text"):
        Evaluator(STEPS, np.ones(320, np.int32), make_mesh())(None, [])


def test_edges_cover_the_row():
    assert bucket_edges(64) == [64] and bucket_edges(65) == [64, 128] and bucket_edges(4096)[-1] == 4096


def test_bytes_are_counted_exactly_beyond_the_integers_of_float32(batches):
    state_bytes = np.full(320, 2**17 + 1, np.int32)
    with jax.set_mesh(make_mesh()):
        sums = Evaluator(STEPS, state_bytes, make_mesh()).sums(make_state(STEPS).params, batches[0])
    targets = int(batches[0].is_target_BT.sum())
    assert sums["targets"] == targets and sums["bytes"] == targets * (2**17 + 1) > 2**24
