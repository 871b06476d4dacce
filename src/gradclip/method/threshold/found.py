"""A limit that a run finds by itself: it starts low, rises slowly and falls fast."""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Array, Namespace, Norms
from ...checks import integer, number
from .base import Context, Limits, State

__all__ = ["Found"]

_NEAR, _MOST = 2.0, 4.0
"""A norm that is farther than this under the level, in logarithms, lowers it by more than the usual
fall, and by up to this many falls: one tiny norm among ordinary ones must not empty the memory."""


@dataclass(frozen=True)
class Found:
    """Limit the norm to a growing share of a level that rises slowly and falls fast.

    high = L·min(1, start·(1 + t/ramp)), with t the number of norms before this one. L is the first
    norm; after each norm, L ← L·e^rise if n > L, else L ← L·exp(-f·g), with g = log(L/n) - 2, at
    least 1 and at most 4, and f = max(fall, first_fall/(1 + t/ramp)).

    Args:
        rise: by how much the logarithm of the level rises after a norm over it, > 0.
        fall: by how much it falls, at least, after a norm under it, > 0.
        first_fall: the same for the first norms, > 0.
        start: the share of the level that is the first limit, in [0, 1].
        ramp: the number of norms after which the share is twice the first share, ≥ 1.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a norm of 0 sets no limit and enters no memory, because a level of 0 would keep the
    gradient at 0. A level that left the range of the dtype begins anew.
    """

    rise: float
    fall: float
    first_fall: float
    start: float
    ramp: int

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        for name in ("rise", "fall", "first_fall"):
            value = number(name, getattr(self, name), low=0, above=True)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "start", number("start", self.start, low=0, high=1, above=True))
        object.__setattr__(self, "ramp", integer("ramp", self.ramp, low=1))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the empty memory: each level is infinite until its first norm above zero."""
        return {"level": xp.full_like(norms, xp.inf), "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the share of each level, and the memory with the moved levels."""
        old, count = state["level"], state["count"]
        one = xp.ones_like(norms)
        level = xp.where((old > 0) & (old < xp.inf), old, norms)
        early = 1 + count / self.ramp
        high = level * xp.minimum(one, self.start * early)
        high = xp.where((high > 0) & (high < xp.inf), high, xp.full_like(high, xp.inf))
        counts = norms > 0
        moved = level * xp.exp(self._step(level, xp.where(counts, norms, one), early, xp))
        return Limits(high=high), {
            "level": xp.where(counts, moved, old),
            "count": xp.where(counts, count + 1, count),
        }

    def _step(self, level: Array, norms: Array, early: Array, xp: Namespace) -> Array:
        """Return by how much the logarithm of each level changes; no norm is 0."""
        one = xp.ones_like(norms)
        gap = xp.log(xp.where(level > 0, level, one)) - xp.log(norms)
        falls = xp.minimum(xp.maximum(gap - _NEAR, one), _MOST * one)
        fall = xp.maximum(self.fall * one, self.first_fall / early)
        return xp.where(norms > level, self.rise * one, -fall * falls)
