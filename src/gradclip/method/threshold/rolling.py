"""Limits from the plain mean of the last norms."""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Namespace, Norms
from ...checks import integer, number
from .base import Context, Limits, State
from .quantile import push

__all__ = ["RollingMean"]


@dataclass(frozen=True)
class RollingMean:
    """high = factor·(mean of the last norms before this one).

    Args:
        factor: > 0.
        window: how many norms are remembered, ≥ 1.
        start: no limit before this many norms were seen, ≥ 1.
    """

    factor: float
    window: int
    start: int

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "factor", number("factor", self.factor, low=0, above=True))
        object.__setattr__(self, "window", integer("window", self.window, low=1))
        object.__setattr__(self, "start", integer("start", self.start, low=1))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return an empty ring buffer; a place that is not filled counts as 0."""
        row = xp.zeros_like(norms)[:, None]
        wide = xp.broadcast_to(row, (row.shape[0], self.window)) + xp.zeros_like(row)
        return {"history": wide, "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return a multiple of the mean, and remember this norm as it is."""
        history, count = state["history"], state["count"]
        filled = xp.where(count < self.window, count, self.window * xp.ones_like(count))
        some = xp.where(filled > 0, filled, xp.ones_like(filled))
        # Each share first: a sum of finite norms could be infinite.
        mean = xp.sum(history / some[:, None], axis=1)
        # Zeros alone say nothing of the usual size: as a limit they would lock the gradient.
        ready = (count >= self.start) & (mean > 0)
        high = xp.where(ready, self.factor * mean, xp.full_like(mean, xp.inf))
        return Limits(high=high), {"history": push(history, count, norms, xp), "count": count + 1}
