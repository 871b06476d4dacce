"""Thresholds that combine other thresholds, or give another threshold other norms."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...arrays import Namespace, Norms
from ...checks import integer, number
from .base import Context, Limits, State, Threshold, check_threshold

__all__ = ["After", "Leading", "OtherOrder", "Smallest"]


@dataclass(frozen=True)
class Smallest:
    """Take the smaller upper limit of two thresholds, and the lower limit of the first one.

    high = min(high₁, high₂), low = low₁.

    Args:
        first: a threshold; its lower limit holds.
        second: another threshold.

    Raises:
        PolicyError: an argument is not a threshold.
    """

    first: Threshold
    second: Threshold

    def __post_init__(self) -> None:
        """Refuse parts and arguments that do not fit."""
        check_threshold("first", self.first)
        check_threshold("second", self.second)

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the empty memories of both thresholds."""
        return {"first": self.first.init(norms, xp), "second": self.second.init(norms, xp)}

    def update(
        self, state: State, norms: Norms, context: Context, xp: Namespace
    ) -> tuple[Limits, State]:
        """Return the smaller upper limits, the first lower limits, and both new memories."""
        one, first = self.first.update(state["first"], norms, context, xp)
        two, second = self.second.update(state["second"], norms, context, xp)
        a, b = (limits.high + xp.zeros_like(norms) for limits in (one, two))
        return Limits(one.low, xp.where(a < b, a, b)), {"first": first, "second": second}


@dataclass(frozen=True)
class After:
    """Use one threshold for the first steps and another one afterwards.

    high = high of `first` for the first `steps` steps, then high of `then`; there is no lower
    limit. Both thresholds remember every step from the start.

    Args:
        steps: the number of steps of the first threshold, ≥ 0.
        first: the threshold of the first steps.
        then: the threshold of all later steps.

    Raises:
        PolicyError: steps is out of its range, or an argument is not a threshold.
    """

    steps: int
    first: Threshold
    then: Threshold

    def __post_init__(self) -> None:
        """Refuse parts and arguments that do not fit."""
        object.__setattr__(self, "steps", integer("steps", self.steps, low=0))
        check_threshold("first", self.first)
        check_threshold("then", self.then)

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the empty memories of both thresholds and the count of steps."""
        memories = {"first": self.first.init(norms, xp), "then": self.then.init(norms, xp)}
        return {**memories, "count": xp.zeros_like(norms)}

    def update(
        self, state: State, norms: Norms, context: Context, xp: Namespace
    ) -> tuple[Limits, State]:
        """Return the limits of the threshold in use, and both new memories."""
        one, first = self.first.update(state["first"], norms, context, xp)
        two, then = self.then.update(state["then"], norms, context, xp)
        early = state["count"] < self.steps
        high = xp.where(early, one.high + xp.zeros_like(norms), two.high + xp.zeros_like(norms))
        return Limits(high=high), {"first": first, "then": then, "count": state["count"] + 1}


@dataclass(frozen=True)
class Leading:
    """Give the first norms the limit that a threshold computes from the largest norm.

    high_i = high(max n) for i < rank, else inf.

    Args:
        of_largest: the threshold, which sees only the largest norm.
        rank: the number of norms that have the limit, from the first on, ≥ 1; None limits all.
            Singular values are in descending order.

    Raises:
        PolicyError: of_largest is not a threshold, or rank is out of its range.
    """

    of_largest: Threshold
    rank: int | None = None

    def __post_init__(self) -> None:
        """Refuse parts and arguments that do not fit."""
        check_threshold("of_largest", self.of_largest)
        if self.rank is not None:
            object.__setattr__(self, "rank", integer("rank", self.rank, low=1))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the threshold's empty memory, with one entry for each norm."""
        return self.of_largest.init(norms, xp)

    def update(
        self, state: State, norms: Norms, context: Context, xp: Namespace
    ) -> tuple[Limits, State]:
        """Return the limit from the largest norm for the first norms, and the new memory."""
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
    """Give a threshold norms of another order than the order of the policy's measure.

    Args:
        order: p > 0 of the p-norm that the threshold sees, or inf.
        threshold: the threshold. The scope of the policy's measure is "tensor" or "global".

    Raises:
        PolicyError: order is not positive, or threshold is not a threshold.
    """

    order: float
    threshold: Threshold

    def __post_init__(self) -> None:
        """Refuse parts and arguments that do not fit."""
        object.__setattr__(self, "order", number("order", self.order, low=0, above=True))
        check_threshold("threshold", self.threshold)

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the threshold's empty memory."""
        return self.threshold.init(norms, xp)

    def update(
        self,
        state: State,
        norms: Norms,  # noqa: ARG002
        context: Context,
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the limits and the new memory that the other norms give."""
        return self.threshold.update(state, context.norms(self.order), context, xp)
