"""Which ends of a range belong to it: an average that keeps everything would never follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from gradclip import PolicyError, parse
from gradclip.method.catalogue import CATALOGUE


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
