"""Arguments are checked here, so that every refusal names argument, value and remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

from .errors import PolicyError

__all__ = ["builtin", "choice", "flag", "integer", "number"]

_MOST = 2**53


def builtin(value: object) -> object:
    """Return Python's own bool, int, float or str for a value that means one.

    A scalar of NumPy's, an array of no axes and a Fraction become Python's number; any other value
    is returned as it is.
    """
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        value = item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        try:
            return float(value)
        except OverflowError:
            return value
    return value


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
    """Return `value` as a float within [low, high]; `above`/`below` exclude the ends.

    Negative zero becomes zero: the two are equal, so they must act alike.
    """
    plain = builtin(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise PolicyError.of(argument, value, "give a real number")
    try:
        result = float(plain) + 0.0
    except OverflowError:
        raise PolicyError.of(argument, value, "it is beyond the largest float") from None
    if math.isnan(result):
        raise PolicyError.of(argument, value, "NaN is not a limit; give a real number")
    if finite and math.isinf(result):
        raise PolicyError.of(argument, value, "give a finite number")
    if result < low or (above and result == low):
        raise PolicyError.of(argument, value, f"give a number {'>' if above else '>='} {low:g}")
    if result > high or (below and result == high):
        raise PolicyError.of(argument, value, f"give a number {'<' if below else '<='} {high:g}")
    return result


def integer(argument: str, value: object, *, low: int) -> int:
    """Return `value` as an int from `low` to 2^53, up to which a float counts exactly."""
    plain = builtin(value)
    if isinstance(plain, bool) or not isinstance(plain, int) or plain < low:
        raise PolicyError.of(argument, value, f"give a whole number >= {low}")
    if plain > _MOST:
        raise PolicyError.of(argument, value, f"give a whole number <= {_MOST}")
    return plain


def flag(argument: str, value: object) -> bool:
    """Return `value` as a bool; 0 and 1 count as one."""
    plain = builtin(value)
    if not isinstance(plain, int) or plain not in (0, 1):
        raise PolicyError.of(argument, value, "give True or False")
    return bool(plain)


def choice(argument: str, value: object, options: Iterable[str]) -> str:
    """Return `value` as a str that is one of `options`."""
    plain, allowed = builtin(value), list(options)
    if not isinstance(plain, str) or plain not in allowed:
        raise PolicyError.of(argument, value, "choose one of " + ", ".join(map(repr, allowed)))
    return plain
