"""benchmarks/compiled/tpu_modelled.py: its rows, its count of tiles and its formula."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.compiled import peers, tpu_modelled
from benchmarks.compiled.schedules import Body, Schedule


@pytest.mark.parametrize("pool", tpu_modelled.POOLS)
def test_rows_are_anchored_documents_and_always_the_same(pool):
    segment_ids = tpu_modelled.rows(pool, 4096)
    np.testing.assert_array_equal(segment_ids, tpu_modelled.rows(pool, 4096))
    assert segment_ids.shape == (tpu_modelled.ROWS, 4096)
    assert (segment_ids[:, 0] == 0).all() and (segment_ids[:, 1:] > 0).all()
    if pool != "interleaved":
        assert (segment_ids[:, 1] == 1).all() and set(np.diff(segment_ids).ravel()) == {0, 1}


def test_copies_of_the_anchor_lengthen_documents_by_a_token():
    shared, copied = (tpu_modelled.rows("linux", 2**16, copied)[0, int(not copied) :] for copied in (False, True))
    both = [np.unique(row, return_counts=True)[1][:-1] for row in (shared, copied)]  # the last document is cut
    whole = min(map(len, both))
    np.testing.assert_array_equal(both[1][:whole], both[0][:whole] + 1)


def test_interleaving_moves_tokens_and_loses_none():
    plain, mixed = (tpu_modelled.rows(pool, 2**15)[0] for pool in ("linux", "interleaved"))
    np.testing.assert_array_equal(np.sort(mixed), plain)
    assert (np.diff(mixed) < 0).any()


@pytest.mark.parametrize("pool", tpu_modelled.POOLS)
@pytest.mark.parametrize(("which", "tile"), [("forward", (256, 128)), ("backward", (128, 256))])
def test_pruned_tiles_are_those_of_tokamax(pool, which, tile):
    """For one row, and for four under `vmap`, which share one list."""
    try:
        peers.require_pruning()
    except NotImplementedError as error:
        pytest.skip(str(error))
    some = jnp.asarray(tpu_modelled.rows(pool, 4096)[:4])

    def visited(row):
        listed, _, _ = peers.tokamax_pruned(row, *tile, which)
        return listed.num_active_blocks[0], jnp.sum(listed.block_mask == 1)

    one = tpu_modelled.pruned(np.array(some[:1]), *tile)
    assert (one.whole + one.masked, one.masked) == tuple(map(int, visited(some[0])))
    four = tpu_modelled.pruned(np.array(some), *tile, together=4)
    count, masked = jax.vmap(visited)(some)
    assert (four.whole + four.masked, four.masked) == (int(count.sum()), int(masked.sum()))


def test_tiles_are_those_of_the_plan():
    """Two documents of two tiles each: the anchor's tile and the two diagonals need a mask."""
    row = np.repeat([0, 1, 2], [1, 255, 256])[None]
    assert tpu_modelled.tally(row, 128, 128) == tpu_modelled.Tally(whole=1, masked=5, q_tiles=4, kv_tiles=4)


def test_cycles_take_the_larger_of_bundles_and_bound():
    """v5e, 512 x 512: the bound is 1024 cycles forward."""
    schedule = Schedule((Body(1000, Counter()), Body(1100, Counter())), per_step=10, per_stretch=100)
    tally = tpu_modelled.Tally(whole=3, masked=2, q_tiles=7, kv_tiles=0)
    schedules = {(512, 512): {"forward": schedule}}
    assert tpu_modelled.cycles("v5e", schedules, "forward", (512, 512), tally) == 3 * 1024 + 2 * 1100 + 5 * 10 + 7 * 100
