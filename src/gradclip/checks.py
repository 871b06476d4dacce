"""Arguments are checked here, so that every refusal names argument, value and remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

from .errors import PolicyError

__all__ = ["choice", "integer", "number"]


def number(
    argument: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
    below: bool = False,
    finite: bool = False,
) -> float:
    """Return `value` as a float within [low, high]; `above`/`below` exclude the ends."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise PolicyError.of(argument, value, "give a real number")
    try:
        result = float(value)
    except OverflowError:
        raise PolicyError.of(argument, value, "it is beyond the largest float") from None
    if math.isnan(result):
        raise PolicyError.of(argument, value, "NaN is no number to clip at; give a real number")
    if finite and math.isinf(result):
        raise PolicyError.of(argument, value, "give a finite number")
    if result < low or (above and result == low):
        raise PolicyError.of(argument, value, f"give a number {'>' if above else '>='} {low:g}")
    if result > high or (below and result == high):
        raise PolicyError.of(argument, value, f"give a number {'<' if below else '<='} {high:g}")
    return result


def integer(argument: str, value: object, *, low: int) -> int:
    """Return `value` as an int that is at least `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise PolicyError.of(argument, value, f"give a whole number >= {low}")
    return int(value)


def choice(argument: str, value: object, options: Iterable[object]) -> None:
    """Refuse a `value` that is not one of `options`."""
    allowed = list(options)
    if value not in allowed:
        raise PolicyError.of(argument, value, "choose one of " + ", ".join(map(repr, allowed)))
