"""A limit that a run finds by itself, under a ceiling that only a calm run lifts."""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Array, Namespace, Norms
from ...checks import number
from .base import Context, Limits, State, average

__all__ = ["Found"]

_SWING, _DECAY, _WIDEST = 0.5, 0.9, 2.0
"""The first swing, the weight of the old swing, and the largest change that enters it."""

_NEAR, _MOST = 2.0, 4.0
"""A norm that is farther than this under the level, in logarithms, lowers it by more than the usual
fall, and by up to this many falls: one tiny norm among ordinary ones must not empty the memory."""

_AGE = 40.0
"""The number of norms after which the first fall is halved."""


@dataclass(frozen=True)
class Found:
    """Limit the norm to a growing share of a level, under a ceiling that only a calm run lifts.

    high = min(p·L, c). L is the first norm; after each norm, L ← L·e^rise if n > L, else
    L ← L·exp(-f·g), with g = log(L/n) - 2, at least 1 and at most 4, and f = max(fall,
    2·fall/(1 + t/40)), where t is the number of norms before. p is `start`; after each norm,
    p ← min(p + pace/s⁶, p + most, top), where the swing s is the moving average of |log(n/n')|,
    n' the norm before. The ceiling c is `usual`; after each norm, c ← c·e^lift if s < calm and
    n > c, else c ← max(c·e^-lift, usual).

    Args:
        rise: by how much the logarithm of the level rises after a norm over it, > 0.
        fall: by how much it falls, at least, after a norm under it, > 0.
        start: the share of the level that is the first limit, in (0, 1].
        top: the largest share, from start to 1.
        pace: by how much the share grows after each norm at a swing of 1, > 0.
        most: the most by which the share grows after a norm, > 0.
        usual: where the ceiling starts, > 0; inf for no ceiling.
        calm: the swing under which the ceiling may rise, > 0.
        lift: by how much the logarithm of the ceiling rises or falls after a norm, > 0.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a norm of 0 enters no memory, because a level of 0 would keep the
    gradient at 0. A level that left the range of the dtype begins anew.
    """

    rise: float
    fall: float
    start: float
    top: float
    pace: float
    most: float
    usual: float
    calm: float
    lift: float

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        for name in ("rise", "fall", "pace", "most", "calm", "lift"):
            value = number(name, getattr(self, name), low=0, above=True, finite=True)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "usual", number("usual", self.usual, low=0, above=True))
        object.__setattr__(self, "start", number("start", self.start, low=0, high=1, above=True))
        object.__setattr__(self, "top", number("top", self.top, low=self.start, high=1))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the empty memory: level and last norm are infinite until a norm above zero."""
        none = xp.full_like(norms, xp.inf)
        share, swing = xp.full_like(norms, self.start), xp.full_like(norms, _SWING)
        zero = xp.zeros_like(norms)
        return {
            "level": none,
            "share": share,
            "last": none + 0,
            "swing": swing,
            "count": zero,
            "room": zero + 0,
        }

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the share of each level, or the ceiling if that is lower, and the new memory."""
        old, share, last = state["level"], state["share"], state["last"]
        level = xp.where((old > 0) & (old < xp.inf), old, norms)
        high = level * share
        one = xp.ones_like(norms)
        ceiling = self.usual * xp.exp(state["room"])
        high = xp.minimum(xp.where(high > 0, high, xp.inf * one), ceiling)
        counts = norms > 0
        some = xp.where(counts, norms, one)
        before = xp.where((last > 0) & (last < xp.inf), last, some)
        change = xp.minimum(xp.abs(xp.log(some) - xp.log(before)), _WIDEST * one)
        swing = average(state["swing"], change, _DECAY)
        power = xp.pow(xp.maximum(swing, 1e-3 * one), 6)
        grown = share + xp.minimum(self.pace / power, self.most * one)
        lift = xp.where((swing < self.calm) & (norms > ceiling), self.lift * one, -self.lift * one)
        new = {
            "level": level * xp.exp(self._step(level, some, state["count"], xp)),
            "share": xp.minimum(grown, self.top * one),
            "last": norms,
            "swing": swing,
            "count": state["count"] + 1,
            "room": xp.maximum(state["room"] + lift, 0 * one),
        }
        return Limits(high=high), {name: xp.where(counts, new[name], state[name]) for name in new}

    def _step(self, level: Array, norms: Array, count: Array, xp: Namespace) -> Array:
        """Return by how much the logarithm of each level changes; no norm is 0."""
        one = xp.ones_like(norms)
        gap = xp.log(xp.where(level > 0, level, one)) - xp.log(norms)
        falls = xp.minimum(xp.maximum(gap - _NEAR, one), _MOST * one)
        fall = self.fall * xp.maximum(one, 2 / (1 + count / _AGE))
        return xp.where(norms > level, self.rise * one, -fall * falls)
