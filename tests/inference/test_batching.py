"""Rows share batches and shapes, and little is idle."""

import numpy as np

from anchorjax.inference.batching import batches, bucket


def test_buckets_waste_a_quarter_at_most():
    sizes = np.arange(1, 5000)
    buckets = np.array([bucket(int(size)) for size in sizes])
    assert (buckets >= sizes).all()
    assert (buckets[sizes >= 16] < 1.25 * sizes[sizes >= 16] + 1).all()
    assert len(set(buckets.tolist())) < 40


def test_batches_ascend_and_keep_kinds_apart():
    items = ["aa", "b", "cccc", "d", "eee"]
    assert list(batches(items, 2, len)) == [["b", "d"], ["aa", "eee"], ["cccc"]]
    assert list(batches(items, 2, len, kind=int)) == [["b", "d"], ["aa"], ["eee"], ["cccc"]]
    assert list(batches(items, 9, len, kind=lambda size: size > 2)) == [["b", "d", "aa"], ["eee", "cccc"]]
    assert list(batches([], 2, len)) == []
