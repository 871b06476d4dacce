"""The bound that goes with clipped samples: no norm is over it, and it is no larger than needed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradclip import Measure, Policy
from gradclip.engine.sample_edits import Edited, edited
from gradclip.method.plan import Stage, plan
from gradclip.method.read import PolicyLike, as_policy
from gradclip.parts import Fixed, Rescale

EPS = np.finfo(np.float64).eps
LARGE = 1e3


def clipped(policy: PolicyLike, *shape: int) -> Edited:
    """Return two samples of large values, clipped."""
    ((stage,),) = plan(as_policy(policy), ("w",))
    assert isinstance(stage, Stage)
    values = np.full((2, *shape), LARGE)
    return edited(stage, "w", values, np, weights=lambda: np.ones(shape))


def norms(found: Edited) -> np.ndarray:
    return np.sqrt(np.sum(found.values**2, axis=tuple(range(1, found.values.ndim))))


@pytest.mark.parametrize(
    ("policy", "shape", "exact"),
    [
        ("value:0.5", (1,), 0.5),
        ("value:0.5", (3, 3), 1.5),
        ("value:-0.25,0.5", (4,), 1.0),
        ("value:-0.5,0.25", (4,), 1.0),
        (Policy(Measure("unit"), Fixed(high=0.5), Rescale()), (1, 7), 0.5),
        (Policy(Measure("unit"), Fixed(high=0.5), Rescale()), (9, 7), 1.5),
        ("agc:0.5", (9, 4), 3.0),
    ],
)
def test_the_bound_is_the_norm_of_all_limits(
    policy: PolicyLike, shape: tuple[int, ...], exact: float
) -> None:
    found = clipped(policy, *shape)
    assert found.changed.all()
    assert (norms(found) <= found.bound).all()
    assert exact * (1 - 64 * EPS) <= float(found.bound) <= exact * (1 + 64 * EPS)


def test_the_bound_of_one_value_is_its_limit_to_the_bit() -> None:
    assert clipped("value:0.5", 1).bound == 0.5
    assert float(clipped("value:0.5", 2).bound) >= math.sqrt(0.5)


def test_no_values_have_no_norm() -> None:
    assert clipped("value:0.5", 0).bound == 0.0


def test_without_an_upper_limit_nothing_bounds_the_norm() -> None:
    assert clipped("value:-0.5,inf", 3).bound == math.inf
