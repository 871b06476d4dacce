"""The rows of a record, and the encoding of a row as a line.

A record is a UTF-8 file of JSON lines. Each line is one object, whose ``kind`` is:

| kind | when | keys |
| --- | --- | --- |
| header | first line | schema, created, gradclip, policy, command, versions |
| optimizer | before its first step | id, class, policy, parameters: [{name, shape, dtype}] |
| step | each step of each optimizer | `STEP_FIELDS`, ran, nonfinite: [names], norms, samples |
| event | at an event for the user | step, name, text |
| end | last line of a run that ended | steps, clipped, skipped, status: "ok" or "error: ..." |

The header of `gradclip run` has ``script`` too, the words of the script and its arguments.

JSON cannot hold inf and NaN: they are the strings ``"inf"``, ``"-inf"`` and ``"nan"``. ``null`` is
an unknown value, such as a loss that was not seen or the norm of an absent gradient. A reader
ignores unknown kinds and keeps unknown keys.

Some keys are only in some step rows. A row has ``ran`` (the path that ran, as in "c-avx2+fold") if
the text differs from the optimizer's step before; in older records the key is ``path``. A row has
``nonfinite`` if a gradient held inf or NaN. For a model of up to 256 parameters each row has
``norms``. For a larger model, the first step, every ⌈parameters/256⌉-th step after it and the first
step of each stretch of non-finite steps have ``norms`` and ``nonfinite``. So a record grows by
about 256 norms a step.

A row has ``script_limit`` (null for several) and ``script_coef`` if the script clipped the
gradients by itself before this step; ``norm`` and ``norms`` are then those before that.

A row has ``samples`` if the run was asked for the samples with the largest gradient norms:
``of`` (how many samples the step had), ``at`` (their places in it), ``norms``, ``ids`` (who they
are, if that is known), ``median`` (of the norms of all samples of the step) and ``total`` (the root
of the sum of all squared norms). A norm is of what a sample adds to ``.grad``, before a
GradScaler's scale is taken out.

A record does not store the numbers of clipped, skipped and non-finite steps so far. They are
running sums of the steps (`Run.counters`), for a record of any version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["NONFINITE", "SCHEMA", "STEP_FIELDS", "Parameter", "encode_row"]

SCHEMA = 1
"""The version of the rows; it rises when an old reader would read a new record wrongly."""

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
"""The numbers of a step row, in the order of the keys."""

NONFINITE = frozenset({"inf", "-inf", "nan"})
"""The spelling of non-finite floats."""


class Parameter(NamedTuple):
    """The name, the shape and the dtype of a parameter, as the record has them."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def encode_row(row: Mapping[str, object]) -> bytes:
    r"""Return `row` as one JSON line, its newline included.

    Args:
        row: from strings to JSON values or to objects with ``tolist()``, such as NumPy arrays
            and torch tensors of any device. Not mutated.

    Raises:
        TypeError: a value is not a JSON value and has no ``tolist()``.

    Example:
        >>> encode_row({"kind": "step", "norm": float("inf")})
        b'{"kind":"step","norm":"inf"}\n'
    """
    try:
        text = _to_json(row)
    except ValueError:  # The row holds a non-finite float, which is rare.
        text = _to_json(_spell_nonfinite(row))
    # A lone surrogate has no UTF-8 form; its backslash escape is also its JSON escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _plain(value: object) -> object:
    """Return a scalar, array or tensor of any library as JSON values."""
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
