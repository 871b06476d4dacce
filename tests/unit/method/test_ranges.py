"""What arguments, limits and texts may be: the ends of ranges, on both sides."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import array_api_compat.torch as torch_xp
import numpy as np
import pytest
import torch

import gradclip.numpy
from gradclip import Policy, PolicyError, by_norm, parse, per_layer
from gradclip.method.catalogue import CATALOGUE
from gradclip.method.read import is_written
from gradclip.method.threshold.limit import now
from gradclip.parts import Context, Ramp, Share


def _parts(value: object) -> Iterator[object]:
    """Yield a part and all parts in it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _parts(each)


AVERAGES = {
    (type(part).__name__, field.name): part
    for row in CATALOGUE.values()
    for part in _parts(row.policy)
    for field in dataclasses.fields(part)  # type: ignore[arg-type]
    if field.name == "beta" or field.name.startswith("decay")
}
"""Each field that weights the old value of an average, with a part that has it."""


def test_there_are_averages() -> None:
    assert {name for name, _ in AVERAGES} >= {"MovingAverage", "MovingBand", "Momentum", "ZScore"}


@pytest.mark.parametrize("place", AVERAGES, ids=".".join)
def test_an_average_may_forget_all_but_not_keep_all(place: tuple[str, str]) -> None:
    part, (_, field) = AVERAGES[place], place
    for good in (0.0, 0.999):
        changed = dataclasses.replace(part, **{field: good})  # type: ignore[type-var]
        assert getattr(changed, field) == good
    for bad in (1.0, -0.001):
        with pytest.raises(PolicyError, match=field):
            dataclasses.replace(part, **{field: bad})  # type: ignore[type-var]


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
