"""The visible context: of each token against the dense mask, and of an epoch from its plan against its rows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax import types
from anchorjax.data.rows import contexts
from anchorjax.masks import allowed, anchors_of
from tests.data.test_variants import TAGS, packer_of

layouts = given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=14),
    seq_len=st.integers(2, 20),
    mask=st.sampled_from(types.MASKS),
    packing=st.sampled_from(types.PACKINGS),
    interleave=st.sampled_from([0, 2, 3]),
    tagged=st.booleans(),
    boundary_targets=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)


@settings(max_examples=250, deadline=None)
@layouts
def test_contexts_are_those_of_the_dense_mask(lengths, seq_len, mask, tagged, interleave, boundary_targets, **options):
    sources, tags = np.arange(len(lengths)) % 3, TAGS if tagged else None
    options |= {"interleave": interleave, "boundary_targets": boundary_targets and not interleave}
    packer = packer_of(lengths, seq_len, mask=mask, sources=sources, tags=tags, **options)
    index, counted_K = np.arange(seq_len), np.zeros(seq_len.bit_length(), int)
    for row in map(packer.row, range(packer.rows_per_epoch)):
        ids = row.segment_ids_T
        seen = allowed(index[:, None], index, ids[:, None], ids, anchors_of(mask))
        np.testing.assert_array_equal(row.visible_T, seen.sum(1))
        buckets = [int(v).bit_length() - 1 for v in row.visible_T[row.is_target_T]]
        counted_K += np.bincount(buckets, minlength=len(counted_K))
    planned_K = packer.targets_by_context()
    if interleave and mask == "full":
        return  # counted as without interleaving: contexts.py says so
    first = 1 if interleave else 0  # the anchor's target depends on which piece comes first
    np.testing.assert_array_equal(planned_K[first:], counted_K[first:])


def test_an_epoch_by_hand():
    """A a b c | A d e f g under the anchor: a, b, c see 2, 3, 4 keys and their anchor one."""
    packer = packer_of([3, 4], 5, packing="best_fit")
    targets_K = packer.targets_by_context()
    assert targets_K.tolist() == [2, 2 + 2, 1]
    assert contexts.name_bucket(0) == "1" and contexts.name_bucket(9) == "512-1023"
    assert contexts.describe(np.array([0] * 6 + [1, 0, 3])) == (
        "targets by the keys that they see: below 64 0.0%, 64-127 25.0%, 256-511 75.0%"
    )


def test_a_few_targets_are_not_none():
    """The quickstart's start: 4096 keys are seen by a handful of its targets, 8192 by none."""
    assert contexts.describe(np.array([5000, *[0] * 5, 5000, 4, 0, 0])) == (
        "targets by the keys that they see: below 64 50.0%, 64-127 50.0%, 128-255 <0.1%"
    )
    named = {0.0: "0.0%", 1e-9: "<0.1%", 0.00049: "<0.1%", 0.0005: "0.1%", 1.0: "100.0%"}
    assert {share: contexts.name_share(share) for share in named} == named
