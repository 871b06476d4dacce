"""The rows of a record, and how one row becomes one line.

A record is a UTF-8 file of JSON lines, one object a line, told apart by ``kind``:

| kind | when | keys |
| --- | --- | --- |
| header | first line | schema, created, gradclip, policy, command, versions |
| optimizer | before its first step | id, class, policy, parameters: [{name, shape, dtype}] |
| step | each step of each optimizer | `STEP_FIELDS`, ran, nonfinite: [names], norms: [number] |
| event | when something is worth telling | step, name, text |
| end | last line of a run that ended | steps, clipped, skipped, status: "ok" or "error: ..." |

JSON has no inf and no NaN: they are the strings ``"inf"``, ``"-inf"`` and ``"nan"``. ``null`` means
not known: a loss that was not seen, the norm of a parameter without a gradient. A reader ignores
unknown kinds and keeps unknown keys.

Three keys of a step row are not in every row. ``ran`` (what ran, as in "c-avx2+fold") is there
when it differs from that of the optimizer's step before; in older records its key is ``path``.
``nonfinite`` is there when a gradient held inf or NaN. ``norms`` is there at each step for a model
of up to 256 parameters; a larger one has them, and ``nonfinite``, at its first step, at every
⌈parameters/256⌉-th after that, and at the first step of each row of non-finite ones: a record grows
by 256 norms a step at most.

How many steps were clipped, skipped or not finite so far is not stored: it is the running sum of
what is (`Run.counters`), the same for a record of any version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["NONFINITE", "SCHEMA", "STEP_FIELDS", "Parameter", "encode_row"]

SCHEMA = 1
"""Version of the rows; raised when an old reader would read a new record wrongly."""

STEP_FIELDS = (
    "step",
    "optimizer",
    "time",
    "loss",
    "lr",
    "norm",
    "clipped_norm",
    "limit",
    "coef",
    "removed",
    "cosine",
    "clipped",
    "skipped",
)
"""The numbers of a step row, in the order they are written."""

NONFINITE = frozenset({"inf", "-inf", "nan"})
"""The spelling of non-finite floats."""


class Parameter(NamedTuple):
    """One parameter of an optimizer, as the record names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def encode_row(row: Mapping[str, object]) -> bytes:
    r"""Return `row` as one JSON line, its newline included.

    Args:
        row: str keys; values that JSON has, or anything with ``tolist()``: NumPy scalars and
            arrays, torch tensors of any device. Not mutated.

    Raises:
        TypeError: a value has no such form.

    Example:
        >>> encode_row({"kind": "step", "norm": float("inf")})
        b'{"kind":"step","norm":"inf"}\n'
    """
    try:
        text = _to_json(row)
    except ValueError:  # a non-finite float somewhere; rare, so it is looked for only then
        text = _to_json(_spell_nonfinite(row))
    # A lone surrogate has no UTF-8 form; its backslash escape is also its JSON escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _plain(value: object) -> object:
    """Turn a scalar, array or tensor of any library into what JSON has."""
    tolist = getattr(value, "tolist", None)
    if tolist is None:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return tolist()


_to_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
).encode


def _spell_nonfinite(value: object) -> object:
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {key: _spell_nonfinite(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_spell_nonfinite(item) for item in value]
    return _spell_nonfinite(_plain(value))
