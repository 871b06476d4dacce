"""What arguments, limits and texts may be: the ends of ranges, on both sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import array_api_compat.torch as torch_xp
import numpy as np
import pytest
import torch

import gradclip.numpy
from gradclip import Policy, PolicyError, by_norm, parse, per_layer
from gradclip.method.read import is_written
from gradclip.method.threshold.limit import now
from gradclip.method.written import PARTS
from gradclip.parts import (
    After,
    Context,
    Difference,
    Fixed,
    Found,
    Leading,
    MeanStd,
    Momentum,
    Moving,
    MovingAverage,
    MovingBand,
    Normalise,
    NormalisedNorm,
    NormaliseLarge,
    OnlineQuantile,
    OtherOrder,
    OwnAverage,
    Power,
    PowerAverage,
    Quantile,
    Ramp,
    RatioToWeight,
    Rescale,
    RollingMean,
    SecondMoment,
    Share,
    WindowZScore,
    ZScore,
)


class Ends(NamedTuple):
    """The last values that a field may have, and the next ones, which it may not."""

    inside: tuple[float, ...]
    outside: tuple[float, ...]


_NEXT = math.nextafter(1.0, 2.0)
FROM_ZERO = Ends((0.0, math.inf), (-5e-324,))
ABOVE_ZERO = Ends((5e-324, math.inf), (0.0,))
FINITE = Ends((5e-324, 1e308), (0.0, math.inf))
UNDER_ONE = Ends((0.0, 1 - 2.0**-53), (-5e-324, 1.0))
UP_TO_ONE = Ends((5e-324, 1.0), (0.0, _NEXT))
SHARE = Ends((0.0, 1.0), (-5e-324, _NEXT))


def _count(least: int) -> Ends:
    return Ends((least, 2**53), (least - 1, 2**53 + 1))


PART = Fixed(1.0)
FOUND = Found(0.02, 0.02, 0.5, 0.7, 0.01, 0.05, 1.0, 0.3, 0.04)
RANGES: list[tuple[object, dict[str, Ends]]] = [
    (After(1, PART, PART), {"steps": _count(0)}),
    (FOUND, dict.fromkeys(["rise", "fall", "pace", "most", "calm", "lift"], FINITE)),
    (FOUND, {"usual": ABOVE_ZERO, "top": Ends((0.5, 1.0), (0.49, _NEXT))}),
    (replace(FOUND, top=1.0), {"start": UP_TO_ONE}),
    (Leading(PART, 1), {"rank": _count(1)}),
    (MeanStd(1.0, 2), {"k": FROM_ZERO, "warmup": _count(2)}),
    (Moving(1.0), {"least": Ends((-math.inf, math.inf), (math.nan,))}),
    (
        MovingAverage(1.5, 0.9),
        {"factor": ABOVE_ZERO, "decay": UNDER_ONE, "warmup": _count(0)},
    ),
    (MovingBand(0.9, 0.0, 1.5, 0.1), {"decay": UNDER_ONE, "high": FROM_ZERO}),
    (MovingBand(0.9, 0.5, math.inf, 0.1), {"low": FROM_ZERO, "min_norm": FROM_ZERO}),
    (MovingBand(0.9, 0.5, 1.5, 0.1), {"high": Ends((0.5,), (0.49,))}),
    (NormalisedNorm(0.9, 0.9, 0.1), {"decay_mean": UNDER_ONE, "decay_square": UNDER_ONE}),
    (NormalisedNorm(0.9, 0.9, 0.1), {"eps": FROM_ZERO}),
    (OnlineQuantile(0.5, 0.2, 1.0), {"q": SHARE, "rate": ABOVE_ZERO, "start": FINITE}),
    (OtherOrder(1.0, PART), {"order": ABOVE_ZERO}),
    (OwnAverage(1.0, 1.05, 0.9, 2), {"start": ABOVE_ZERO, "factor": ABOVE_ZERO}),
    (OwnAverage(1.0, 1.05, 0.9, 2), {"decay": UNDER_ONE, "warmup": _count(0)}),
    (PowerAverage(1.0, 0.9), {"alpha": ABOVE_ZERO, "decay": UNDER_ONE}),
    (Quantile(0.5, 3), {"q": SHARE, "window": _count(1), "warmup": _count(0)}),
    (RatioToWeight(1.0, 0.1), {"eps": FROM_ZERO}),
    (RollingMean(1.5, 3, 2), {"factor": ABOVE_ZERO, "window": _count(1), "start": _count(1)}),
    (SecondMoment(2.0, 0.9, 1), {"theta": ABOVE_ZERO, "decay": UNDER_ONE}),
    (SecondMoment(2.0, 0.9, 1), {"warmup": _count(0), "minimum": FROM_ZERO}),
    (Share(1.0, 2), {"parts": _count(1)}),
    (WindowZScore(1.0, 4, 3), {"k": ABOVE_ZERO, "window": _count(2), "minimum": _count(3)}),
    (ZScore(1.0, 0.9, 2, 0.0), {"z_max": ABOVE_ZERO, "decay": UNDER_ONE, "eps": FROM_ZERO}),
    (ZScore(1.0, 0.9, 2, 0.0), {"warmup": _count(2), "factor": ABOVE_ZERO}),
    (Rescale(), {"max_gain": Ends((1.0, math.inf), (1 - 2.0**-53,)), "eps": FROM_ZERO}),
    (Normalise(), {"eps": FROM_ZERO}),
    (NormaliseLarge(), {"r": FINITE}),
    (Power(0.5), {"alpha": UP_TO_ONE}),
    (Momentum(0.9), {"beta": UNDER_ONE}),
    (Difference(0.5, 0.5), {"beta1": UP_TO_ONE, "beta2": UP_TO_ONE}),
    (Ramp(1.0, 0.1, 5), {"steps": _count(1), "start": Ends((-1e308, 1e308), (math.inf,))}),
    (Ramp(1.0, 0.1, 5), {"end": Ends((-1e308, 1e308), (-math.inf, math.nan))}),
]
"""A part, and what its numbers may be while the others are as they are in this part."""
ENDS = [(part, name, ends) for part, each in RANGES for name, ends in each.items()]


def test_every_number_of_every_part_has_its_range_here() -> None:
    found = {
        (kind.__name__, field.name)
        for kind in PARTS.values()
        if is_dataclass(kind)
        for field in fields(kind)
        if field.type in ("int", "float", "int | None")
    }
    assert found == {(type(part).__name__, name) for part, name, _ in ENDS}


@pytest.mark.parametrize(
    ("part", "name", "ends"), ENDS, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
def test_a_number_may_be_at_the_ends_of_its_range_and_not_beyond(
    part: Any, name: str, ends: Ends
) -> None:
    for good in ends.inside:
        assert getattr(replace(part, **{name: good}), name) == good
    for bad in ends.outside:
        with pytest.raises(PolicyError, match=name):
            replace(part, **{name: bad})


def test_fifty_brackets_in_each_other_are_the_most() -> None:
    with pytest.raises(PolicyError, match="write it as"):  # It looks into all of them.
        parse("(" * 50 + ")" * 50)
    with pytest.raises(PolicyError, match="it has over 50 brackets in others"):
        parse("(" * 51 + ")" * 51)


@pytest.mark.parametrize("recipe", [by_norm, per_layer])
def test_a_moving_limit_may_be_under_one(recipe: Callable[[Ramp], Policy]) -> None:
    grads = [np.full(4, 3.0), np.full(9, 3.0)]
    clipped, _, _ = gradclip.numpy.clip(grads, recipe(Ramp(0.5, 0.25, 4)))
    whole = math.sqrt(sum(float(np.sum(each**2)) for each in clipped))
    assert 0.5 * (1 - 1e-12) <= whole <= 0.5 * (1 + 4 * np.finfo(np.float64).eps)


def test_a_saved_state_names_its_policy_in_the_words_of_any_version() -> None:
    policy = by_norm(1.0)
    assert is_written(policy, str(policy))
    assert is_written(policy, "norm:1")
    for other in ("norm:2.0", "value:1.0", "no such method", "norm:(", None, 3):
        assert not is_written(policy, other)


def test_the_shares_of_a_limit_on_a_device_are_never_more_than_the_whole() -> None:
    """There the limit is an array, so that no exact arithmetic can find the largest share."""
    for parts in range(1, 300):
        share = Share(high=Ramp(1.0 + parts / 7, 0.1, 9), parts=parts)
        context = Context(step=torch.tensor(parts % 9, dtype=torch.float64))
        limits, _ = share.update({}, torch.ones(parts, dtype=torch.float64), context, torch_xp)
        whole = now(share.high, context.step, torch_xp, least=0)
        assert isinstance(whole, torch.Tensor)
        exact = Fraction(float(whole)) ** 2
        assert parts * Fraction(float(limits.high)) ** 2 <= exact
        assert parts * Fraction(float(limits.high) * (1 + 2.0**-49)) ** 2 > exact
