"""Flags of the tokens that are trained on: rows of a store of conversations, and the counts of its targets."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.data.rows import contexts
from anchorjax.data.rows import positions as positions_lib
from anchorjax.data.store import tokens as store_lib
from anchorjax.pages.store import lengths as lengths_lib
from anchorjax.types import MASKS, PACKINGS
from tests.data.test_packing import ANCHOR, PAD, store_of
from tests.data.test_variants import TAGS, packer_of

layouts = given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=14),
    seq_len=st.integers(2, 20),
    mask=st.sampled_from(MASKS),
    packing=st.sampled_from(PACKINGS),
    interleave=st.sampled_from([0, 2, 3]),
    tagged=st.booleans(),
    upsample_long=st.booleans(),
    boundary_targets=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)


def packers_of(lengths, trained, seq_len, **options):
    """A packer of texts, and one of the same tokens with flags."""
    texts = packer_of(lengths, seq_len, **options)
    return texts, dataclasses.replace(
        texts, store=dataclasses.replace(texts.store, trained=np.asarray(trained, bool)), _memory={}
    )


def draw(lengths, seed):
    return np.random.default_rng(seed % 2**32).random(sum(lengths)) < 0.4


def test_a_row_by_hand():
    """A a b c d e, of which b, d and e are trained on: the targets of a, of the boundary c if it has one, and of d."""
    for boundary, expected in ((False, [0, 1, 0, 0, 1, 0]), (True, [0, 1, 0, 1, 1, 0])):
        _, packer = packers_of([3, 2], [0, 1, 0, 1, 1], 6, boundary_targets=boundary)
        row = packer.row(0)
        assert row.tokens_T.tolist() == [ANCHOR, 0, 1, 2, 3, 4]
        assert row.is_target_T.tolist() == expected
        assert row.targets_T.tolist() == [
            token + 1 if is_one else PAD for token, is_one in zip(range(-1, 5), expected, strict=True)
        ]


def test_a_cut_conversation_keeps_its_flags():
    first, second = (packers_of([5, 2], [0, 0, 0, 1, 1, 0, 1], 5)[1].row(i) for i in range(2))
    assert first.targets_T.tolist() == [PAD, PAD, PAD, 3, 4], "the last target is the first token of the next row"
    assert second.targets_T.tolist() == [PAD, PAD, 6, PAD, PAD]


@settings(max_examples=300, deadline=None)
@layouts
def test_targets_are_those_of_texts_that_are_trained_on(lengths, seq_len, tagged, **options):
    """Tokens are numbers of the store's tokens, so each row tells its own flags."""
    options["boundary_targets"] &= not options["interleave"]
    options |= {"sources": np.arange(len(lengths)) % 3, "tags": TAGS if tagged else None}
    trained = draw(lengths, options["seed"])
    texts, packer = packers_of(lengths, trained, seq_len, **options)
    told = np.append(trained, False)
    for index in range(texts.rows_per_epoch):
        text, row = texts.row(index), packer.row(index)
        expected_T = text.is_target_T & told[np.where(text.is_target_T, text.targets_T, -1)]
        np.testing.assert_array_equal(row.is_target_T, expected_T)
        np.testing.assert_array_equal(row.targets_T, np.where(expected_T, text.targets_T, PAD))
        for name in ("tokens_T", "positions_T", "segment_ids_T", "visible_T", "index_T"):
            np.testing.assert_array_equal(getattr(row, name), getattr(text, name))


@settings(max_examples=100, deadline=None)
@layouts
def test_a_transform_sees_which_tokens_are_trained_on(lengths, seq_len, tagged, **options):
    options["boundary_targets"] &= not options["interleave"]
    options |= {"sources": np.arange(len(lengths)) % 3, "tags": TAGS if tagged else None}
    trained, seen = draw(lengths, options["seed"]), []
    with pytest.MonkeyPatch.context() as patch:
        spy = lambda pieces, spec, rng: (seen.append(pieces.trained_T), positions_lib.continued(pieces, spec, rng))[1]  # noqa: E731
        patch.setitem(positions_lib.POSITIONS, "continue", spy)
        texts, packer = packers_of(lengths, trained, seq_len, **options)
        rows = [packer.row(index) for index in range(packer.rows_per_epoch)]
        flags, seen = seen[-len(rows) :], []
        texts.row(0)
    for row, trained_T in zip(rows, flags, strict=True):
        text_T = row.tokens_T < 900  # others are the anchor, tags and padding
        assert trained_T.dtype == bool
        np.testing.assert_array_equal(trained_T, text_T & trained[np.where(text_T, row.tokens_T, 0)])
    assert seen == [None], "texts have no flags"


@settings(max_examples=300, deadline=None)
@layouts
def test_contexts_count_trained_targets(lengths, seq_len, mask, tagged, interleave, **options):
    options["boundary_targets"] &= not interleave
    options |= {"sources": np.arange(len(lengths)) % 3, "tags": TAGS if tagged else None}
    trained = draw(lengths, options["seed"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "_AT_ONCE", 24)  # several pieces at once, and several times
        _, packer = packers_of(lengths, trained, seq_len, mask=mask, interleave=interleave, **options)
        planned_K = packer.targets_by_context()
    counted_K = np.zeros(seq_len.bit_length(), int)
    for row in map(packer.row, range(packer.rows_per_epoch)):
        buckets = [int(v).bit_length() - 1 for v in row.visible_T[row.is_target_T]]
        counted_K += np.bincount(buckets, minlength=len(counted_K))
    if interleave and mask == "full":
        return  # counted as without interleaving: contexts.py says so
    first = 1 if interleave else 0  # the anchor's target depends on which piece comes first
    np.testing.assert_array_equal(planned_K[first:], counted_K[first:])


def test_flags_are_part_of_the_fingerprint():
    store = store_of([3, 2])
    arrays = store.tokens, store.offsets, store.sources, ("",)
    texts = store_lib.fingerprint("x", *arrays)
    flagged = [store_lib.fingerprint("x", *arrays, np.array(flags, bool)) for flags in ([1] * 5, [1] * 4 + [0])]
    assert len({texts, *flagged}) == 3


@pytest.mark.parametrize("most", [100, 3])
def test_a_store_without_text_keeps_the_flags_of_its_documents(most):
    lengths = [3, 1, 4, 2, 6]
    store = dataclasses.replace(store_of(lengths), trained=np.arange(16) % 3 == 0)
    thin = lengths_lib.without_text(store, 0, most)
    flags = {
        length: store.trained[a : a + length].tolist() for length, a in zip(lengths, store.offsets[:-1], strict=True)
    }
    found = {len(own): own.tolist() for own in np.split(thin.trained, thin.offsets[1:-1])}
    assert found == {length: flags[length] for length in found} and len(found) == min(most, 5)
