"""Limits from moments of the gradient's own values, or of its norms, as optimizers keep them."""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Namespace, Norms
from ...checks import flag, integer, number
from .base import Context, Limits, State, average, corrected

__all__ = ["NormalisedNorm", "PowerAverage", "SecondMoment"]


@dataclass(frozen=True)
class SecondMoment:
    """SPAM's limit: high = √(theta·V), V ← decay·V + (1-decay)·min(n, high)².

    Args:
        theta: > 0.
        decay: of V, in [0, 1).
        warmup: no limit before this many steps.
        corrected: whether V is rid of its start at zero, for the limit.
        minimum: the least limit, ≥ 0.
    """

    theta: float
    decay: float
    warmup: int
    corrected: bool = False
    minimum: float = 0.0

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "theta", number("theta", self.theta, low=0, above=True))
        object.__setattr__(self, "decay", number("decay", self.decay, low=0, high=1, below=True))
        object.__setattr__(self, "warmup", integer("warmup", self.warmup, low=0))
        object.__setattr__(self, "corrected", flag("corrected", self.corrected))
        object.__setattr__(self, "minimum", number("minimum", self.minimum, low=0))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return a second moment of nothing."""
        return {"moment": xp.zeros_like(norms), "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return a multiple of the root mean square; one that was never non-zero has none."""
        moment, count = state["moment"], state["count"]
        ready = (count >= self.warmup) & (moment > 0)
        square = moment
        if self.corrected:
            square = corrected(moment, self.decay, xp.where(ready, count, xp.ones_like(count)))
        high = xp.sqrt(self.theta * square)
        if self.minimum:
            high = xp.where(high > self.minimum, high, self.minimum * xp.ones_like(high))
        high = xp.where(ready, high, xp.full_like(high, xp.inf))
        value = xp.where(norms > high, high, norms)
        return Limits(high=high), {
            "moment": average(moment, value * value, self.decay),
            "count": count + 1,
        }


@dataclass(frozen=True)
class PowerAverage:
    """ACClip's limit: high = τ with τ^α ← decay·τ^α + (1-decay)·|g|^α of the raw gradient.

    Args:
        alpha: the power, > 0.
        decay: of the average, in [0, 1).
    """

    alpha: float
    decay: float

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "alpha", number("alpha", self.alpha, low=0, above=True))
        object.__setattr__(self, "decay", number("decay", self.decay, low=0, high=1, below=True))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return an average of nothing."""
        return {"power": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,  # noqa: ARG002
        context: Context,
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the average, which this step's gradient has entered."""
        power = average(state["power"], xp.abs(context.raw()) ** self.alpha, self.decay)
        return Limits(high=power ** (1 / self.alpha)), {"power": power}


@dataclass(frozen=True)
class NormalisedNorm:
    """AdaGN's target: high = m̂/(√v̂ + eps), m and v the moving moments of the norm.

    Args:
        decay_mean: of m, in [0, 1).
        decay_square: of v, in [0, 1).
        eps: added to the root, ≥ 0.
    """

    decay_mean: float
    decay_square: float
    eps: float

    def __post_init__(self) -> None:
        """Refuse early."""
        for name in ("decay_mean", "decay_square"):
            value = number(name, getattr(self, name), low=0, high=1, below=True)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "eps", number("eps", self.eps, low=0))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return moments of nothing."""
        return {name: xp.zeros_like(norms) for name in ("mean", "square", "count")}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the target norm; each moment is corrected by its own decay."""
        count = state["count"] + 1
        mean = average(state["mean"], norms, self.decay_mean)
        square = average(state["square"], norms * norms, self.decay_square)
        root = xp.sqrt(corrected(square, self.decay_square, count)) + self.eps
        some = xp.where(root > 0, root, xp.ones_like(root))
        high = corrected(mean, self.decay_mean, count) / some
        return Limits(high=high), {"mean": mean, "square": square, "count": count}
