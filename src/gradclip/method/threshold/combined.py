"""Thresholds made of thresholds, which change when they hold or which norms they see."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...arrays import Namespace, Norms
from ...checks import integer, number
from .base import Context, Limits, State, Threshold, check_threshold

__all__ = ["After", "Leading", "OtherOrder", "Smallest"]


@dataclass(frozen=True)
class Smallest:
    """The tighter upper limit of two thresholds; the first one's lower limit."""

    first: Threshold
    second: Threshold

    def __post_init__(self) -> None:
        """Refuse early."""
        check_threshold("first", self.first)
        check_threshold("second", self.second)

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return both memories."""
        return {"first": self.first.init(norms, xp), "second": self.second.init(norms, xp)}

    def update(
        self, state: State, norms: Norms, context: Context, xp: Namespace
    ) -> tuple[Limits, State]:
        """Return the tighter limits and both new memories."""
        one, first = self.first.update(state["first"], norms, context, xp)
        two, second = self.second.update(state["second"], norms, context, xp)
        a, b = (limits.high + xp.zeros_like(norms) for limits in (one, two))
        return Limits(one.low, xp.where(a < b, a, b)), {"first": first, "second": second}


@dataclass(frozen=True)
class After:
    """One threshold for the first steps, another after them; both watch from the start."""

    steps: int
    first: Threshold
    then: Threshold

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "steps", integer("steps", self.steps, low=0))
        check_threshold("first", self.first)
        check_threshold("then", self.then)

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return both memories and the count of steps."""
        memories = {"first": self.first.init(norms, xp), "then": self.then.init(norms, xp)}
        return {**memories, "count": xp.zeros_like(norms)}

    def update(
        self, state: State, norms: Norms, context: Context, xp: Namespace
    ) -> tuple[Limits, State]:
        """Return the limits that hold now and both new memories."""
        one, first = self.first.update(state["first"], norms, context, xp)
        two, then = self.then.update(state["then"], norms, context, xp)
        early = state["count"] < self.steps
        high = xp.where(early, one.high + xp.zeros_like(norms), two.high + xp.zeros_like(norms))
        return Limits(high=high), {"first": first, "then": then, "count": state["count"] + 1}


@dataclass(frozen=True)
class Leading:
    """The limit that a threshold gives for the largest of the norms, for the first of them.

    Args:
        of_largest: the threshold, which sees only the largest norm.
        rank: so many norms have the limit, from the first on, ≥ 1; None for all. Singular
            values come in descending order.
    """

    of_largest: Threshold
    rank: int | None = None

    def __post_init__(self) -> None:
        """Refuse early."""
        check_threshold("of_largest", self.of_largest)
        if self.rank is not None:
            object.__setattr__(self, "rank", integer("rank", self.rank, low=1))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the threshold's memory, as often as there are norms."""
        return self.of_largest.init(norms, xp)

    def update(
        self, state: State, norms: Norms, context: Context, xp: Namespace
    ) -> tuple[Limits, State]:
        """Return the limit of the largest norm for the first norms, and the new memory."""
        zeros = xp.zeros_like(norms)
        largest = xp.max(norms) + zeros if math.prod(norms.shape) else norms
        limits, new = self.of_largest.update(state, largest, context, xp)
        if self.rank is None:
            return limits, new
        place = xp.cumulative_sum(xp.reshape(xp.ones_like(norms), (-1,))) - 1
        leads = xp.reshape(place, norms.shape) < self.rank
        high = None if limits.high is None else xp.where(leads, limits.high + zeros, zeros + xp.inf)
        low = None if limits.low is None else xp.where(leads, limits.low + zeros, zeros)
        return Limits(low, high), new


@dataclass(frozen=True)
class OtherOrder:
    """The limit that a threshold gives for the norms of another order than the policy's measure.

    Args:
        order: p > 0 of the p-norm that the threshold sees, or inf.
        threshold: the threshold; the policy's measure takes one norm of each tensor, or of all.
    """

    order: float
    threshold: Threshold

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "order", number("order", self.order, low=0, above=True))
        check_threshold("threshold", self.threshold)

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the threshold's memory."""
        return self.threshold.init(norms, xp)

    def update(
        self,
        state: State,
        norms: Norms,  # noqa: ARG002
        context: Context,
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the threshold's limits and new memory, for norms of the other order."""
        return self.threshold.update(state, context.norms(self.order), context, xp)
