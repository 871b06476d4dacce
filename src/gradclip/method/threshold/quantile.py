"""Limits at a quantile of the norms seen so far: exact over a window, or tracked."""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Array, Namespace, Norms
from ...checks import flag, integer, number
from .base import Context, Limits, State

__all__ = ["OnlineQuantile", "Quantile", "places", "push"]


def push(history: Array, count: Array, values: Array, xp: Namespace) -> Array:
    """Return a ring buffer, shape (K, W), with one more value for each row."""
    here = places(history, xp) == _slot(count, history.shape[1], xp)
    return xp.where(here, values[:, None], history)


def _slot(count: Array, width: int, xp: Namespace) -> Array:
    """Return the place in a ring buffer where the next value goes, shape (K, 1)."""
    return (count - width * xp.floor(count / width))[:, None]


def _exchange(ordered: Array, old: Array, new: Array, xp: Namespace) -> Array:
    """Return rows in ascending order, shape (K, W), with a new value for an old one.

    In two steps of W comparisons, where a sort would take W·log W of them.
    """
    end = xp.full_like(ordered[:, :1], xp.inf)
    longer = xp.minimum(
        xp.concat([ordered, end], axis=1),
        xp.maximum(xp.concat([-end, ordered], axis=1), new[:, None]),
    )
    return xp.where(longer[:, :-1] < old[:, None], longer[:, :-1], longer[:, 1:])


def places(history: Array, xp: Namespace) -> Array:
    """Return 0, 1, … W-1, shape (1, W), where and in the dtype that the history has."""
    return xp.cumulative_sum(xp.ones_like(history[:1]), axis=1) - 1


@dataclass(frozen=True)
class Quantile:
    """high = the q-quantile of the last norms, linearly interpolated.

    Args:
        q: in [0, 1].
        window: how many norms are remembered, ≥ 1.
        warmup: no limit before this many norms were context.
        current: whether this step's norm counts for its own limit.
    """

    q: float
    window: int
    warmup: int = 1
    current: bool = True

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "q", number("q", self.q, low=0, high=1))
        object.__setattr__(self, "window", integer("window", self.window, low=1))
        object.__setattr__(self, "warmup", integer("warmup", self.warmup, low=0))
        object.__setattr__(self, "current", flag("current", self.current))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return an empty ring buffer; what is not filled counts as infinite."""
        row = xp.full_like(norms, xp.inf)[:, None]
        wide = xp.broadcast_to(row, (row.shape[0], self.window)) + xp.zeros_like(row)
        return {"history": wide, "ordered": wide + 0, "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Remember this step's norms, and return the quantile."""
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
        # By comparison, not by index: JAX may have no int64, and PyTorch takes no other.
        below, above = (
            xp.sum(xp.where(here, ordered, xp.zeros_like(ordered)), axis=1)
            for here in (enough[:, None] & (at == p[:, None]) for p in (low, high))
        )
        value = below + (above - below) * (position - low)
        return xp.where(enough, value, xp.full_like(value, xp.inf))


@dataclass(frozen=True)
class OnlineQuantile:
    """high ← high·exp(-rate·(1[n ≤ high] - q)): a quantile tracked with one number.

    Args:
        q: the share of norms that should lie under the limit, in [0, 1].
        rate: the step of the logarithm, > 0.
        start: the first limit, > 0.
    """

    q: float
    rate: float
    start: float

    def __post_init__(self) -> None:
        """Refuse early."""
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
        """Return the limit as it stands, and move it towards the quantile."""
        limit = state["limit"]
        under = xp.where(norms <= limit, xp.ones_like(limit), xp.zeros_like(limit))
        return Limits(high=limit), {"limit": limit * xp.exp(-self.rate * (under - self.q))}
