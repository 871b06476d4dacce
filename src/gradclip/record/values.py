"""What a row may hold: the JSON values of a row become a typed row, or are refused by key.

Every value of a record, from JSON lines or from the metadata of a Parquet file, enters here and
nowhere else. What is behind this module needs no check of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .rows import End, Event, Floats, Header, Optimizer, Samples
from .schema import NONFINITE, STEP_FIELDS, Parameter

__all__ = [
    "MOST_WHOLE",
    "StepValues",
    "WrongValue",
    "end_of",
    "event_of",
    "header_of",
    "kind_of",
    "number_of",
    "optimizer_of",
    "samples_of",
    "step_of",
    "text_of",
    "whole_of",
]

MOST_WHOLE = 2**53
"""The largest whole number of a record; up to it a float64 counts exactly."""

DEEPEST = 50
"""The largest number of lists and objects inside each other in a further key of a row."""

_SHOWN = 80
_SPELLED: dict[str, float] = {name: float(name) for name in NONFINITE}
_FIELDS = frozenset(STEP_FIELDS)
_NOT_NUMBERS = ("kind", "nonfinite", "norms", "ran")


class WrongValue(ValueError):
    """A value that a row may not hold.

    Args:
        key: the key of the value.
        value: the value.
        expected: what the value must be.
    """

    def __init__(self, key: str, value: object, expected: str) -> None:
        text = repr(value)  # This form escapes what could control a terminal.
        text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        super().__init__(f"{key} is {text}, and must be {expected}")


class StepValues(NamedTuple):
    """The values of one step row."""

    step: int
    optimizer: int
    numbers: dict[str, float]
    """The numbers of the row, by key, without those that are unknown."""
    others: list[str]
    """The further keys whose values are not numbers."""
    norms: Floats | None
    odd: list[int]
    """The indices of the norms that are inf or NaN."""
    nonfinite: list[str]
    ran: str | None
    samples: Samples | None


def kind_of(row: object) -> str:
    """Return the kind of a row.

    Raises:
        WrongValue: the row is not an object with a kind.
    """
    if not isinstance(row, dict):
        raise WrongValue("the row", row, "an object")
    return text_of(row, "kind")


def header_of(row: Mapping[str, object]) -> Header:
    """Return the header in a row; `WrongValue` names a key with a wrong value."""
    known = ("schema", "created", "gradclip", "policy", "command", "script", "versions")
    versions = row.get("versions") or {}
    if not isinstance(versions, Mapping):
        raise WrongValue("versions", versions, "an object of texts")
    return Header(
        schema=whole_of(row, "schema", low=0),
        created=_text_or_none(row, "created"),
        gradclip=_text_or_none(row, "gradclip"),
        policy=_text_or_none(row, "policy"),
        command=tuple(_texts(row, "command")),
        script=tuple(_texts(row, "script")),
        versions={name: text_of(versions, name) for name in versions if versions[name] is not None},
        extra=_rest(row, known),
    )


def optimizer_of(row: Mapping[str, object]) -> Optimizer:
    """Return the optimizer in a row; `WrongValue` names a key with a wrong value."""
    return Optimizer(
        id=whole_of(row, "id"),
        class_name=text_of(row, "class", ""),
        policy=_text_or_none(row, "policy"),
        parameters=tuple(map(_parameter, _list(row, "parameters"))),
        extra=_rest(row, ("id", "class", "policy", "parameters")),
    )


def event_of(row: Mapping[str, object]) -> Event:
    """Return the event in a row; `WrongValue` names a key with a wrong value."""
    return Event(
        name=text_of(row, "name"),
        text=text_of(row, "text", ""),
        step=None if row.get("step") is None else whole_of(row, "step"),
        extra=_rest(row, ("name", "text", "step")),
    )


def end_of(row: Mapping[str, object]) -> End:
    """Return the end in a row; `WrongValue` names a key with a wrong value."""
    counts = ("steps", "clipped", "skipped")
    return End(
        status=text_of(row, "status"),
        **{key: None if row.get(key) is None else whole_of(row, key, low=0) for key in counts},
        extra=_rest(row, ("status", *counts)),
    )


def step_of(row: Mapping[str, object]) -> StepValues:
    """Return the values of a step row; `WrongValue` names a key with a wrong value."""
    step = whole_of(row, "step")
    optimizer = whole_of(row, "optimizer") if "optimizer" in row else 0
    numbers: dict[str, float] = {}
    others: list[str] = []
    for key, value in row.items():
        if type(value) is float:
            numbers[key] = value
        elif value is not None and key not in _NOT_NUMBERS:
            try:
                numbers[key] = number_of(value, key)
            except WrongValue:
                if key in _FIELDS:
                    raise
                others.append(key)
    for key in _NOT_NUMBERS:
        numbers.pop(key, None)
    numbers["step"], numbers["optimizer"] = step, optimizer
    norms, odd = _norms(row["norms"]) if row.get("norms") is not None else (None, [])
    ran, older = _text_or_none(row, "ran"), row.get("path")
    if ran is None and isinstance(older, str):  # Older records have the key "path".
        ran = older
    nonfinite, own = _texts(row, "nonfinite"), row.get("samples")
    # A number at this key is a column of the user's own.
    samples = samples_of(own) if isinstance(own, Mapping) else None
    return StepValues(step, optimizer, numbers, others, norms, odd, nonfinite, ran, samples)


def samples_of(value: object) -> Samples:
    """Return the samples of a step row; `WrongValue` names a key with a wrong value."""
    if not isinstance(value, Mapping):
        raise WrongValue("samples", value, "an object")
    at = tuple(whole_of({"at": each}, "at", low=0) for each in _list(value, "at"))
    norms = tuple(number_of(each, "norms") for each in _list(value, "norms"))
    ids = None if value.get("ids") is None else tuple(map(_id, _list(value, "ids")))
    if len(norms) != len(at) or (ids is not None and len(ids) != len(at)):
        raise WrongValue("samples", value, "as many norms, and ids, as places")
    median, total = (number_of(value.get(key), key) for key in ("median", "total"))
    return Samples(whole_of(value, "of", low=0), at, norms, ids, median, total)


def _id(value: object) -> int | str:
    if isinstance(value, str):
        return value
    return whole_of({"ids": value}, "ids")


def number_of(value: object, key: str) -> float:
    """Return a JSON value as a float: a number, true or false, or the spelling of inf or NaN."""
    if isinstance(value, str) and value in _SPELLED:
        return _SPELLED[value]
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            raise WrongValue(key, value, "within the range of float64") from None
    raise WrongValue(key, value, 'a number, "inf", "-inf", "nan" or null')


def whole_of(row: Mapping[str, object], key: str, *, low: int = -MOST_WHOLE) -> int:
    """Return the whole number at a key, from `low` to 2^53."""
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        whole = int(value) if low <= value <= MOST_WHOLE else None
        if whole is not None and whole == value:
            return whole
    least = f"from {low} " if low > -MOST_WHOLE else ""
    raise WrongValue(key, value, f"a whole number {least}up to 2^53")


def text_of(row: Mapping[str, object], key: str, default: str | None = None) -> str:
    """Return the text at a key."""
    value = row.get(key, default)
    if not isinstance(value, str):
        raise WrongValue(key, value, "text")
    return value


def _norms(values: object) -> tuple[Floats, list[int]]:
    """Return norms as float64 with NaN for null, and the indices of those that are inf or NaN."""
    if not isinstance(values, list):
        raise WrongValue("norms", values, "a list of numbers")
    if not set(map(type, values)) <= {float, int, type(None)}:
        values = [
            None if value is None else number_of(value, f"norms[{index}]")
            for index, value in enumerate(values)
        ]
    try:
        array = np.array(values, dtype=np.float64)
    except OverflowError:
        raise WrongValue("norms", values, "within the range of float64") from None
    if np.isfinite(array).all():
        return array, []
    bad = ~np.isfinite(array) & np.array([value is not None for value in values])
    return array, np.flatnonzero(bad).tolist()


def _parameter(item: object) -> Parameter:
    if not isinstance(item, Mapping):
        raise WrongValue("a parameter", item, "an object")
    shape = _list(item, "shape")
    return Parameter(
        text_of(item, "name"),
        tuple(whole_of({"shape": length}, "shape", low=0) for length in shape),
        text_of(item, "dtype", ""),
    )


def _text_or_none(row: Mapping[str, object], key: str) -> str | None:
    return None if row.get(key) is None else text_of(row, key)


def _list(row: Mapping[str, object], key: str) -> Sequence[object]:
    value = row.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise WrongValue(key, value, "a list")
    return value


def _texts(row: Mapping[str, object], key: str) -> list[str]:
    values = _list(row, key)
    for value in values:
        if not isinstance(value, str):
            raise WrongValue(key, values, "a list of texts")
    return [str(value) for value in values]


def _rest(row: Mapping[str, object], known: Sequence[str]) -> dict[str, object]:
    """Return the further keys of a row, which may not be nested so deep that no writer writes."""
    rest = {key: value for key, value in row.items() if key not in known and key != "kind"}
    for key, value in rest.items():
        level: list[object] = [value]
        for _ in range(DEEPEST):
            level = [item for held in level for item in _items(held)]
            if not level:
                break
        else:
            raise WrongValue(key, "nested", f"nested at most {DEEPEST} deep")
    return rest


def _items(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
