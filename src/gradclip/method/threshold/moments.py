"""Limits from moving moments of the gradient's values, or of its norms."""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Namespace, Norms
from ...checks import flag, integer, number
from ..measure import raised
from .base import Context, Limits, State, average, corrected

__all__ = ["NormalisedNorm", "PowerAverage", "SecondMoment"]


@dataclass(frozen=True)
class SecondMoment:
    """Limit each value to a multiple of its own moving root mean square (SPAM).

    high = √(theta·V); then V ← decay·V + (1-decay)·min(n, high)².

    Args:
        theta: the largest ratio of n² to V, > 0.
        decay: the weight of the old V, in [0, 1).
        warmup: the number of steps without a limit, ≥ 0.
        corrected: whether the limit uses V with a bias correction, V/(1-decayᵗ).
        minimum: the smallest limit, ≥ 0.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a value whose V is 0 has no limit.

    Source: Huang et al. 2025, equation 4; AdamWClip for the correction and the minimum.
    """

    theta: float
    decay: float
    warmup: int
    corrected: bool = False
    minimum: float = 0.0

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "theta", number("theta", self.theta, low=0, above=True))
        object.__setattr__(self, "decay", number("decay", self.decay, low=0, high=1, below=True))
        object.__setattr__(self, "warmup", integer("warmup", self.warmup, low=0))
        object.__setattr__(self, "corrected", flag("corrected", self.corrected))
        object.__setattr__(self, "minimum", number("minimum", self.minimum, low=0))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return second moments of zero, and the count of steps."""
        return {"moment": xp.zeros_like(norms), "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return a multiple of the root mean square, or no limit where the moment is zero."""
        moment, count = state["moment"], state["count"]
        ready = (count >= self.warmup) & (moment > 0)
        square = moment
        if self.corrected:
            square = corrected(moment, self.decay, xp.where(ready, count, xp.ones_like(count)), xp)
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
    """Limit each value to a moving average of the raw gradient's magnitude (ACClip).

    high = τ, with τ^α ← decay·τ^α + (1-decay)·|g|^α; g of this step counts.

    Args:
        alpha: the power α, > 0.
        decay: the weight of the old average, in [0, 1).

    Raises:
        PolicyError: an argument is out of its range.

    Source: Zhang et al. 2020, algorithm 2.
    """

    alpha: float
    decay: float

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "alpha", number("alpha", self.alpha, low=0, above=True))
        object.__setattr__(self, "decay", number("decay", self.decay, low=0, high=1, below=True))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return averages of zero."""
        return {"power": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,  # noqa: ARG002
        context: Context,
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the average, with this step's gradient in it, and the new memory."""
        power = average(state["power"], raised(xp.abs(context.raw()), self.alpha, xp), self.decay)
        return Limits(high=raised(power, 1 / self.alpha, xp)), {"power": power}


@dataclass(frozen=True)
class NormalisedNorm:
    """Set the norm from the moving averages of the norm and of its square (AdaGN).

    high = m̂/(√v̂ + eps), with m and v the moving averages of n and n²; n of this step counts.

    Args:
        decay_mean: the weight of the old m, in [0, 1).
        decay_square: the weight of the old v, in [0, 1).
        eps: added to the root, ≥ 0.

    Raises:
        PolicyError: an argument is out of its range.

    Source: Stable-SPAM, arXiv:2502.17055, AdaGN.
    """

    decay_mean: float
    decay_square: float
    eps: float

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        for name in ("decay_mean", "decay_square"):
            value = number(name, getattr(self, name), low=0, high=1, below=True)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "eps", number("eps", self.eps, low=0))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return moments of zero, and the count of steps."""
        return {name: xp.zeros_like(norms) for name in ("mean", "square", "count")}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the target norm and the new memory; each moment has its own bias correction."""
        count = state["count"] + 1
        mean = average(state["mean"], norms, self.decay_mean)
        square = average(state["square"], norms * norms, self.decay_square)
        root = xp.sqrt(corrected(square, self.decay_square, count, xp)) + self.eps
        some = xp.where(root > 0, root, xp.ones_like(root))
        high = corrected(mean, self.decay_mean, count, xp) / some
        return Limits(high=high), {"mean": mean, "square": square, "count": count}
