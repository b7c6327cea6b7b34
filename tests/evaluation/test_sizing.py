"""The search for the size that fits: never too long, as full as promised, in few attempts."""

import bisect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorjax.evaluation.tasks.ruler import sizing


class Lengths:
    """Attempts whose lengths are given: `base` at size 0, and one step more for each unit."""

    def __init__(self, base: int, steps: list[int]):
        self.sums = [base]
        for step in steps:
            self.sums.append(self.sums[-1] + step)
        self.asked = []

    def __call__(self, size: int) -> range:
        self.asked.append(size)
        return range(self.sums[size])

    def fit(self, budget: int, slack: int) -> int:
        return len(sizing.fit(self, 1, len(self.sums) - 1, budget, slack))


@given(
    base=st.integers(1, 100),
    steps=st.lists(st.integers(0, 60), min_size=1, max_size=400),
    budget=st.integers(1, 20_000),
    slack=st.integers(1, 64),
)
def test_full_but_never_too_long(base, steps, budget, slack):
    lengths = Lengths(base, steps)
    if lengths.sums[1] > budget:
        with pytest.raises(sizing.TooShort) as error:
            lengths.fit(budget, slack)
        assert error.value.needed == lengths.sums[1]
        return
    found = lengths.fit(budget, slack)
    best = lengths.sums[bisect.bisect_right(lengths.sums, budget) - 1]
    assert found <= budget
    assert budget - found < slack or found == best
    assert len(lengths.asked) == len(set(lengths.asked)), "an attempt was made twice"


@pytest.mark.parametrize("steps", [[2, 1] * 400_000, [5 + i // 100_000 for i in range(800_000)]], ids=["even", "bent"])
def test_few_attempts_at_a_million_tokens(steps):
    lengths = Lengths(300, steps)
    budget = 1 << 20
    assert budget - lengths.fit(budget, sizing.slack(budget)) < 1024
    costs = [lengths.sums[size] for size in lengths.asked]
    assert sum(costs) < 3.2 * budget  # the sample itself is one of the three


def test_every_budget():
    steps = [3, 1, 4, 1, 5, 9, 2, 6] * 20
    for budget in range(20, 640):
        lengths = Lengths(10, steps)
        assert lengths.fit(budget, 1) == lengths.sums[bisect.bisect_right(lengths.sums, budget) - 1]


def test_where_secants_creep_halving_goes_on():
    """A jump over the budget, in front of which and behind which nothing rises."""
    lengths = Lengths(1, [0] * 50_000 + [1_000_000] + [0] * 50_000)
    assert lengths.fit(30_000, 1) == 1
    assert len(lengths.asked) < 40


def test_slack():
    assert [sizing.slack(length) for length in (512, 1024, 4096, 131_072, 1 << 20)] == [1, 1, 4, 128, 1024]
