"""Limits at a quantile of the norms so far: exact over a window, or estimated by one number."""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Array, Namespace, Norms
from ...checks import flag, integer, number
from .base import Context, Limits, State

__all__ = ["OnlineQuantile", "Quantile", "empty_ring", "places", "push"]


def empty_ring(norms: Norms, width: int, xp: Namespace, *, filler: float = 0.0) -> Array:
    """Return a ring buffer without values, shape (K, W).

    Args:
        norms: shape (K,); only their shape and dtype count.
        width: W, the number of values that each row will hold.
        xp: the array namespace of the buffer.
        filler: what each empty place holds.
    """
    row = xp.full_like(norms, filler)[:, None]
    return xp.broadcast_to(row, (row.shape[0], width)) + xp.zeros_like(row)


def push(history: Array, count: Array, values: Array, xp: Namespace) -> Array:
    """Return a ring buffer, shape (K, W), with one more value in each row.

    Args:
        history: the ring buffer, shape (K, W); not mutated.
        count: the number of values that each row has taken so far, shape (K,).
        values: the new values, shape (K,).
        xp: the array namespace of the buffer.
    """
    here = places(history, xp) == _slot(count, history.shape[1], xp)
    return xp.where(here, values[:, None], history)


def _slot(count: Array, width: int, xp: Namespace) -> Array:
    """Return the column of a ring buffer for the next value of each row, shape (K, 1)."""
    return (count - width * xp.floor(count / width))[:, None]


def _exchange(ordered: Array, old: Array, new: Array, xp: Namespace) -> Array:
    """Return sorted rows, shape (K, W), in which a new value replaces an old one.

    This takes two passes of W comparisons; a sort would take W·log W comparisons.
    """
    end = xp.full_like(ordered[:, :1], xp.inf)
    longer = xp.minimum(
        xp.concat([ordered, end], axis=1),
        xp.maximum(xp.concat([-end, ordered], axis=1), new[:, None]),
    )
    return xp.where(longer[:, :-1] < old[:, None], longer[:, :-1], longer[:, 1:])


def places(history: Array, xp: Namespace) -> Array:
    """Return 0, 1, … W-1, shape (1, W), with the dtype and device of the history."""
    return xp.cumulative_sum(xp.ones_like(history[:1]), axis=1) - 1


@dataclass(frozen=True)
class Quantile:
    """Limit the norm to a quantile of the last raw norms.

    high = the q-quantile of the last `window` norms, interpolated linearly.

    Args:
        q: the quantile, in [0, 1].
        window: the number of norms that are remembered, ≥ 1.
        warmup: the number of norms before there is a limit, ≥ 0.
        current: whether this step's norm counts for its own limit.

    Raises:
        PolicyError: an argument is out of its range.
    """

    q: float
    window: int
    warmup: int = 1
    current: bool = True

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "q", number("q", self.q, low=0, high=1))
        object.__setattr__(self, "window", integer("window", self.window, low=1))
        object.__setattr__(self, "warmup", integer("warmup", self.warmup, low=0))
        object.__setattr__(self, "current", flag("current", self.current))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return an empty ring buffer; each empty place counts as infinite."""
        wide = empty_ring(norms, self.window, xp, filler=xp.inf)
        return {"history": wide, "ordered": wide + 0, "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the quantile, and the memory with this step's norms."""
        history, count = state["history"], state["count"]
        at = places(history, xp)
        here = at == _slot(count, self.window, xp)
        oldest = xp.sum(xp.where(here, history, xp.zeros_like(history)), axis=1)
        new = {
            "history": xp.where(here, norms[:, None], history),
            "ordered": _exchange(state["ordered"], oldest, norms, xp),
            "count": count + 1,
        }
        used = new if self.current else state
        return Limits(high=self._quantile(used["ordered"], used["count"], at, xp)), new

    def _quantile(self, ordered: Array, count: Array, at: Array, xp: Namespace) -> Array:
        filled = xp.where(count < self.window, count, self.window * xp.ones_like(count))
        last = xp.where(filled > 0, filled - 1, xp.zeros_like(filled))
        position = self.q * last
        low = xp.floor(position)
        high = xp.where(low < last, low + 1, last)
        enough = (count >= self.warmup) & (filled > 0)
        # Select by comparison, not by index: PyTorch accepts only int64, which JAX may lack.
        below, above = (
            xp.sum(xp.where(here, ordered, xp.zeros_like(ordered)), axis=1)
            for here in (enough[:, None] & (at == p[:, None]) for p in (low, high))
        )
        value = below + (above - below) * (position - low)
        return xp.where(enough, value, xp.full_like(value, xp.inf))


@dataclass(frozen=True)
class OnlineQuantile:
    """Limit the norm to a quantile that one running number estimates.

    After each step, high ← high·exp(-rate·(1[n ≤ high] - q)).

    Args:
        q: the share of norms that should be under the limit, in [0, 1].
        rate: the step size of the logarithm of the limit, > 0.
        start: the first limit, > 0 and finite.

    Raises:
        PolicyError: an argument is out of its range.

    Source: Andrew et al. 2019, section 2, without the noise for privacy.
    """

    q: float
    rate: float
    start: float

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "q", number("q", self.q, low=0, high=1))
        object.__setattr__(self, "rate", number("rate", self.rate, low=0, above=True))
        start = number("start", self.start, low=0, above=True, finite=True)
        object.__setattr__(self, "start", start)

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the first limit."""
        return {"limit": xp.full_like(norms, self.start)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the limit before this step, and the memory with the moved limit."""
        limit = state["limit"]
        under = xp.where(norms <= limit, xp.ones_like(limit), xp.zeros_like(limit))
        return Limits(high=limit), {"limit": limit * xp.exp(-self.rate * (under - self.q))}
