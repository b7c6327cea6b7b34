"""The grid of depths and lengths."""

import numpy as np
import pytest

from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.errors import EvaluationError
from anchorjax.evaluation.tasks.needle import Grid
from tests.evaluation.test_ruler_needles import context_of

BYTES = tokenizer_lib.load("bytes")
LENGTHS, DEPTHS = (2048, 16_384), (0, 33.3, 50, 100)


@pytest.mark.parametrize("haystack", ["essays", "noise"])
def test_needles_lie_where_the_grid_says(haystack):
    grid = Grid(BYTES, LENGTHS, DEPTHS, repeats=2, haystack=haystack)
    assert len(grid) == len(list(grid)) == 16
    for i, sample in enumerate(grid):
        length, depth = LENGTHS[i // 8], DEPTHS[i % 8 // 2]
        assert sample.length == length and length - 100 < sample.num_tokens <= length
        context = context_of(sample.prompt)
        before = context[: context.index("One of the special")]
        share = 100 * len(before) / (len(context) - 70)
        # To the nearest end of a sentence, some of which have 400 bytes.
        assert abs(share - depth) < (15 if length == 2048 else 2)
        assert sample.depths[0] == pytest.approx(depth, abs=6 if haystack == "noise" else 0)
        if depth in (0, 100):
            assert not (before.strip() if depth == 0 else context.split(sample.references[0])[1].strip(". "))
    assert len({sample.references for sample in grid}) == 16


def test_heat_map():
    grid = Grid(BYTES, LENGTHS, DEPTHS, repeats=2)
    answers = [sample.references[0] for sample in grid]
    assert np.array_equal(grid.heat_map(answers), np.full((2, 4), 100.0))
    answers[3] = answers[8] = answers[9] = "nothing"
    assert grid.heat_map(answers).tolist() == [[100, 50, 100, 100], [0, 100, 100, 100]]
    with pytest.raises(EvaluationError, match="3 predictions for 16 samples"):
        grid.heat_map(answers[:3])


def test_what_is_refused():
    with pytest.raises(EvaluationError, match="depths=101 is not allowed"):
        Grid(BYTES, LENGTHS, (0, 101))
    with pytest.raises(EvaluationError, match="is empty"):
        Grid(BYTES, (), (0,))
    with pytest.raises(EvaluationError, match="needle has no room in 300 tokens"):
        Grid(BYTES, (2048, 300), (0,))
