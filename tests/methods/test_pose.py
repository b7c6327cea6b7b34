"""PoSE (arXiv 2309.10400): oracles, where it skips, what it draws, and its recipe."""

import collections

import numpy as np
from hypothesis import settings

from anchorjax.config import recipe, resolve
from anchorjax.data.rows import distances
from anchorjax.data.rows.positions import RowPieces, RowSpec
from anchorjax.data.rows.positions.skipping.pose import positions as pose
from tests.data.test_positions import layouts, packer_of, pose_config, rows_of, tokens_of_documents


class Scripted:
    """Raw draws that are given: of the order of documents, of cuts, of skips."""

    def __init__(self, *draws):
        self._draws = [np.array(values, np.uint64) for values in draws]

    def random_raw(self, size):
        draws = self._draws.pop(0)
        assert len(draws) == size
        return draws


def pieces_of(lengths):
    lengths = np.array(lengths)
    start = 1 + np.cumsum(lengths) - lengths
    return RowPieces(np.arange(len(lengths)), start, np.zeros_like(lengths), lengths)


@settings(max_examples=150, deadline=None)
@layouts
def test_pose_skips_at_chunks_inside_documents_and_nowhere_else(lengths, seq_len, more, chunks, epoch, **options):
    packer = packer_of(lengths, seq_len, more, chunks, positions="pose", **options)
    for row in rows_of(packer, epoch):
        steps = np.diff(row.positions_T)
        assert np.all(steps >= 1), "rising along the row, from document to document and into the padding"
        jumps = set((np.flatnonzero(steps > 1) + 1).tolist())
        for own in tokens_of_documents(row, lengths):
            here = jumps & set(own[1:].tolist())
            assert len(here) <= chunks - 1
            jumps -= here
        assert not jumps, "neither a document's first token nor padding begins a chunk"
        if not more:
            assert row.positions_T.tolist() == list(range(seq_len))


def test_oracle_of_one_document():
    """L_c = 8, L_t = 20, a first chunk of 3 and u_1 = 9; the anchor comes on top and shifts all by one."""
    spec, one = RowSpec(1 + 8, 1 + 20, pose_config()), pieces_of([8])
    at = pose(one, spec, Scripted([5], [2], [9])).tolist()
    assert at[0] == 0 and [p - 1 for p in at[1:]] == [0, 1, 2, 12, 13, 14, 15, 16]
    assert at[-1] - 1 <= 19
    assert pose(one, spec, Scripted([5], [2], [0])).tolist() == list(range(9)), "u = 0 is arange"
    assert pose(one, spec, Scripted([5], [2], [13])).tolist() == list(range(9)), "13 modulo 13 is no skip"
    assert pose(one, spec, Scripted([5], [2], [12])).max() == 20, "a document alone may use the whole budget"


def test_documents_share_the_budget_in_the_order_drawn():
    """(a b c) and (d e) in 8 tokens for 20 positions, as in the docstring of positions/; and the other way round."""
    spec, two = RowSpec(8, 20, pose_config()), pieces_of([3, 2])
    assert pose(two, spec, Scripted([1, 2], [1, 0], [6, 3])).tolist() == [0, 1, 2, 9, 10, 14, 15, 16]
    # The second document draws first, 12 of 12; nothing is left for the first.
    assert pose(two, spec, Scripted([2, 1], [0, 1], [12, 3])).tolist() == [0, 1, 2, 3, 4, 17, 18, 19]


def test_chunks_of_an_interleaved_document_are_cut_in_its_own_tokens():
    """a | d | b c | e: the cut before b lies between two pieces, and the skip there moves all that follows."""
    pieces = RowPieces(np.array([0, 1, 0, 1]), np.array([1, 2, 3, 5]), np.array([0, 0, 1, 1]), np.array([1, 1, 2, 1]))
    spec = RowSpec(8, 20, pose_config())
    assert pose(pieces, spec, Scripted([1, 2], [0, 0], [4, 2])).tolist() == [0, 1, 2, 7, 8, 11, 12, 13]


def test_every_cut_and_every_skip_is_equally_likely():
    """Three tokens and a budget of three: 2 cuts x 4 skips, each within four standard deviations of 1/8."""
    spec, count = RowSpec(4, 7, pose_config()), 8000
    found = collections.Counter(
        tuple(pose(pieces_of([3]), spec, np.random.Philox(key=[1, i])).tolist()) for i in range(count)
    )
    cut_1 = {(0, 1, 2 + u, 3 + u): 1 for u in range(1, 4)}
    cut_2 = {(0, 1, 2, 3 + u): 1 for u in range(1, 4)}
    expected = {**cut_1, **cut_2, (0, 1, 2, 3): 2}
    assert set(found) == set(expected)
    for row, ways in expected.items():
        share = ways / 8
        assert abs(found[row] / count - share) < 4 * np.sqrt(share * (1 - share) / count)


def test_probability_that_a_distance_occurs():
    """L_c = 2048 to L_t = 16384: drawn rows against the exact formula, within four standard deviations."""
    context, count = 2048, 3000
    distances_D = np.array([1000, 1500, 2000, 8192, 16000])
    exact_D = distances.pose([context], 16384 - context, distances_D).probability_D
    spec, lone = RowSpec(1 + context, 1 + 16384, pose_config()), pieces_of([context])
    found_D = np.zeros(len(distances_D))
    for i in range(count):
        at = pose(lone, spec, np.random.Philox(key=[2, i]))[1:]
        found_D += [np.isin(at + d, at).any() for d in distances_D]
    assert np.all(np.abs(found_D / count - exact_D) <= 4 * np.sqrt(exact_D * (1 - exact_D) / count))
    np.testing.assert_allclose(exact_D, [1, 0.58315, 0.179014, 0.142777, 0.026784], rtol=2e-5)


def test_documents_of_a_packed_row_draw_alike():
    """Three documents, a budget of 1000: the first to draw gets a half on average, then a quarter, then an eighth."""
    spec, count = RowSpec(31, 1031, pose_config()), 4000
    rows = [pose(pieces_of([10, 10, 10]), spec, np.random.Philox(key=[3, i])) for i in range(count)]
    spans_D = np.array([[at[10] - at[1], at[20] - at[11], at[30] - at[21]] for at in rows]) - 9
    np.testing.assert_allclose(spans_D.mean(0), 1000 * (1 / 2 + 1 / 4 + 1 / 8) / 3, rtol=0.06)
    assert np.all(spans_D.max(0) > 990), "any of them may take nearly all"
    assert np.all(spans_D.sum(1) <= 1000)


def test_the_recipe():
    """Rows of the SmolLM2 recipe, positions of eight rows."""
    config = resolve(recipe("methods/pose").to_dict())
    assert config.data.mask == "anchor" and config.data.positions == "pose"
    assert config.max_position == 8 * config.data.seq_len == 16384
