"""Find values in a saved memory that the memory of a threshold can never hold.

A name has the same meaning in all thresholds of this package: `count` is the number of norms so
far, `history` is a ring buffer of the last norms, and `ordered` is this buffer in ascending order.
Every other entry holds norms, or means and squares of norms, which are never negative.
"""

from __future__ import annotations

from ...arrays import Array, Namespace, State, Values
from .base import Threshold
from .combined import Leading
from .quantile import places

__all__ = ["fault", "history_fault", "inside"]

_MOST = 2.0**53
_OF_ANY_SIGN = ("mean", "history", "ordered", "limit", "own")


def inside(threshold: Threshold, name: str) -> Threshold:
    """Return the threshold whose memory is the dictionary `name` in the memory of another."""
    while isinstance(threshold, Leading):
        threshold = threshold.of_largest
    return getattr(threshold, name, threshold)


def fault(
    name: str, value: Values, empty: Values, xp: Namespace, *, own: bool, signed: bool
) -> str | None:
    """Return the fault of an entry of a memory, or None.

    Args:
        name: the name of the entry.
        value: the entry, an array of floats; not mutated.
        empty: one element, which the entry holds before the first norm.
        xp: the array namespace of both arrays.
        own: whether the threshold is one of this package, so that the name has a known meaning.
        signed: whether the measured values can be negative, as losses can.
    """
    empty = xp.reshape(empty, (-1,))[:1]
    both_nan = xp.isnan(value) & xp.isnan(empty)
    sound = xp.isfinite(value) | (value == empty) | both_nan
    if not bool(xp.all(sound)):
        return "this entry never holds inf or NaN" if _finite(empty, xp) else "it holds NaN or -inf"
    if not own:
        return None
    if name == "count":
        whole = (value >= 0) & (value <= _MOST) & (value == xp.floor(value))
        return None if bool(xp.all(whole)) else "a count is a whole number from 0 to 2^53"
    if bool(xp.any(value < 0)) and not (signed and name in _OF_ANY_SIGN):
        return "this entry is never negative"
    return None


def history_fault(state: State, empty: State, xp: Namespace) -> str | None:
    """Return the contradiction between a ring buffer, its count and its order, or None."""
    history, count = state["history"], state["count"]
    if history.ndim != 2 or count.ndim != 1:
        return None
    none = xp.reshape(empty["history"], (-1,))[:1]
    filled = places(history, xp) < count[:, None]
    right = xp.where(filled, xp.isfinite(history), history == none)
    if not bool(xp.all(right)):
        return "it holds another number of values than count says"
    if "ordered" in state and not bool(xp.all(xp.sort(history, axis=1) == state["ordered"])):
        return "ordered holds other values than history"
    return None


def _finite(value: Array, xp: Namespace) -> bool:
    return bool(xp.all(xp.isfinite(value)))
