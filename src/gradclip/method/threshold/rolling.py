"""Limits from the plain mean of the last norms."""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Namespace, Norms
from ...checks import integer, number
from .base import Context, Limits, State
from .quantile import empty_ring, push

__all__ = ["RollingMean"]


@dataclass(frozen=True)
class RollingMean:
    """Limit the norm to a multiple of the plain mean of the last raw norms.

    high = factor·(mean of the last `window` norms before this one).

    Args:
        factor: the multiple of the mean, > 0.
        window: the number of norms that are remembered, ≥ 1.
        start: the number of norms before there is a limit, ≥ 1.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a mean of 0 sets no limit, because a limit of 0 would keep the gradient at 0.
    """

    factor: float
    window: int
    start: int

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "factor", number("factor", self.factor, low=0, above=True))
        object.__setattr__(self, "window", integer("window", self.window, low=1))
        object.__setattr__(self, "start", integer("start", self.start, low=1))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return an empty ring buffer; each empty place counts as 0."""
        history = empty_ring(norms, self.window, xp)
        return {"history": history, "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return a multiple of the mean, and the memory with this step's raw norm."""
        history, count = state["history"], state["count"]
        filled = xp.where(count < self.window, count, self.window * xp.ones_like(count))
        some = xp.where(filled > 0, filled, xp.ones_like(filled))
        # Divide before the sum: a sum of finite norms could be infinite.
        mean = xp.sum(history / some[:, None], axis=1)
        # A mean of zero does not show the usual size: a limit of zero would keep the gradient
        # at zero.
        ready = (count >= self.start) & (mean > 0)
        high = xp.where(ready, self.factor * mean, xp.full_like(mean, xp.inf))
        return Limits(high=high), {"history": push(history, count, norms, xp), "count": count + 1}
