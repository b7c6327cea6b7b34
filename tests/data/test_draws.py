"""Random choices are functions of the seed; upsampling keeps each source's share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.data.rows.draws import SHORT, Stream, draws, long_documents, permutation

RNG = np.random.default_rng(0)
# Like a mixture: much short web text, books that are all long, code between.
MIXED = np.concatenate(
    [RNG.integers(50, 6000, 4000), RNG.integers(50_000, 200_000, 40), RNG.integers(100, 20_000, 500)]
)
SOURCES = np.repeat(np.array([0, 1, 2], np.int16), [4000, 40, 500])

GOLDEN = {
    "DOCUMENTS": 8893702929424106994,
    "ROWS": 3845544696532098304,
    "SHORT_DOCUMENTS": 6626441875418973127,
    "LEFT_OUT": 14782732156583515734,
    "CUTS": 11488684978782629940,
    "MERGE": 15963921523711275334,
    "POSITIONS": 1245891655244497395,
    "RECONSTRUCTION": 4872484641232207470,
}
GOLDEN_PERMUTATION = [4, 0, 2, 5, 3, 1]


def test_streams_never_change():
    """Golden. If this fails, a resumed run would see other data than before."""
    first = {stream.name: int(draws(stream, 7, 3, 1)[0]) for stream in Stream}
    assert first == GOLDEN
    assert permutation(Stream.ROWS, 7, 3, 6).tolist() == GOLDEN_PERMUTATION


def test_upsampling_keeps_long_documents_and_each_sources_share():
    kept = long_documents(MIXED, SOURCES, seed=1, epoch=0)
    after = np.bincount(SOURCES[kept], weights=MIXED[kept])
    before = np.bincount(SOURCES, weights=MIXED)
    scale = min(after / before)
    # Nothing more is left out than the share asks for: to within one document of each source.
    longest = np.array([MIXED[SOURCES == source].max() for source in range(3)])
    assert np.all(after >= scale * before) and np.all(after <= scale * before + longest)
    short = MIXED < SHORT
    often = np.mean([long_documents(MIXED, SOURCES, 1, epoch) for epoch in range(30)], axis=0)
    for source in (0, 2):
        of_short, of_long = (often[(SOURCES == source) & some].mean() for some in (short, ~short))
        assert of_short == pytest.approx(of_long / 10, rel=0.1)
    assert kept[(SOURCES == 0) & ~short].all(), "the source that loses most loses nothing else"
    assert kept[(SOURCES == 0) & short].sum() == -(-((SOURCES == 0) & short).sum() // 10)


def test_upsampling_chooses_anew_in_each_epoch():
    choices = [long_documents(MIXED, SOURCES, seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len({choice.tobytes() for choice in choices}) == 4
    np.testing.assert_array_equal(choices[0], long_documents(MIXED, SOURCES, 1, 0))


def test_a_short_document_is_kept_as_often_as_any_other():
    lengths, sources = np.full(20, 100), np.zeros(20, np.int16)
    times = sum(long_documents(lengths, sources, 3, epoch).astype(int) for epoch in range(2000))
    assert times.sum() == 2 * 2000
    assert ((times - 200) ** 2 / 200).sum() < 43.8  # the 0.1% tail of 19 degrees


@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 3)), min_size=1, max_size=40),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_source_stays_in_every_epoch(documents, seed):
    lengths, sources = np.array(documents).T
    kept = long_documents(lengths, sources, seed, 0)
    assert set(sources[kept]) == set(sources)
