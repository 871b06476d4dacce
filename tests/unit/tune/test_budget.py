"""The budget of a tuning: how it is read, and that no plan costs more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradclip.errors import PolicyError
from gradclip.tune import Budget, lengths_for
from gradclip.tune.budget import Grid, Pace, fit, shorten
from gradclip.tune.plan import AUTO, MIN_STEPS, UNCLIPPED, sizes_for

TEXTS = {
    "10m": (600.0, "seconds"),
    "1.5h": (5400.0, "seconds"),
    "90 s": (90.0, "seconds"),
    "2min": (120.0, "seconds"),
    "20,000 steps": (20000.0, "steps"),
    "500steps": (500.0, "steps"),
}
THRESHOLDS = tuple(f"norm:{limit}" for limit in range(1, 9))
WANTED = Grid((UNCLIPPED, AUTO, *THRESHOLDS), (0.5, 1.0, 2.0, 4.0), 300, 300)


@pytest.mark.parametrize("text", TEXTS)
def test_a_budget_is_read(text: str) -> None:
    budget = Budget.read(text)
    assert (budget.amount, budget.unit) == TEXTS[text]


@pytest.mark.parametrize("text", ["", "10", "m", "-1m", "0m", "1e9m", "59steps", "10 days"])
def test_a_text_that_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="--budget"):
        Budget.read(text)


@given(st.floats(100, 1e6), st.integers(1, 4), st.floats(0, 50), st.floats(0.01, 10))
def test_no_plan_costs_more_than_the_budget(
    left: float, rungs: int, start: float, step: float
) -> None:
    pace = Pace(start, step)
    grid = fit(WANTED, rungs, left, pace)
    lengths = lengths_for(grid.steps, rungs)
    sizes = sizes_for(grid.count, len(lengths))
    smallest = grid.policies == (UNCLIPPED, AUTO) and len(grid.factors) == 1
    assert pace.cost(sizes, lengths) <= left or (smallest and grid.steps == MIN_STEPS)
    assert {UNCLIPPED, AUTO} <= set(grid.policies) <= set(WANTED.policies)
    assert 1.0 in grid.factors
    assert bool(grid.left_out) == (grid.steps < 300 or grid.count < WANTED.count)


def test_a_large_budget_changes_nothing_and_a_small_one_says_what_is_left_out() -> None:
    assert fit(WANTED, 3, 1e6, Pace()) == WANTED
    small = fit(WANTED, 3, 2000, Pace())
    assert small.policies == WANTED.policies
    assert small.factors == WANTED.factors
    assert MIN_STEPS < small.steps < 300
    told = f"For the budget the longest runs have {small.steps} steps, not 300."
    assert small.left_out == told
    smaller = fit(WANTED, 3, 130, Pace())
    assert smaller.factors == (1.0,)
    assert "3 of 4 learning rates are left out" in smaller.left_out
    assert "of 10 policies are left out" in smaller.left_out


@given(st.integers(200, 3000), st.integers(1, 2), st.floats(0, 5000), st.floats(0.01, 3))
def test_rungs_that_cost_more_than_is_left_become_shorter(
    steps: int, place: int, left: float, step: float
) -> None:
    lengths = lengths_for(steps, 3)
    sizes = sizes_for(30, 3)
    pace = Pace(1.0, step)
    new = shorten(lengths, sizes, place, left, pace)
    assert new[:place] == lengths[:place]
    assert pace.cost(sizes[place : len(new)], new[place:]) <= left
    assert sorted(set(new)) == list(new)
    assert all(a <= b for a, b in zip(new, lengths, strict=False))
    if pace.cost(sizes[place:], lengths[place:]) <= left:
        assert new == lengths
