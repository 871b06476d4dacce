"""AdaGC's limit: a multiple of each tensor's own average norm, after a warm-up."""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Namespace, Norms
from ...checks import integer, number
from ..measure import combine
from .base import Context, Limits, State, average

__all__ = ["OwnAverage"]


@dataclass(frozen=True)
class OwnAverage:
    """Limit each norm to a multiple of the moving average of its own clipped values.

    Warm-up: the global norm is clipped at start, and γᵢ = min(γᵢ, ‖ĝᵢ‖). Afterwards:
    high = factor·γᵢ, γᵢ ← decay·γᵢ + (1-decay)·‖ĝᵢ‖, with ĝ the clipped gradient.

    Args:
        start: the limit of the global norm in the warm-up, > 0.
        factor: the multiple of the average, > 0.
        decay: the weight of the old average, in [0, 1).
        warmup: the number of steps of the warm-up, ≥ 0.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a norm of 0 does not enter an empty average.

    Source: AdaGC, arXiv:2502.11034v1, algorithm 1.
    """

    start: float
    factor: float
    decay: float
    warmup: int

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "start", number("start", self.start, low=0, above=True))
        object.__setattr__(self, "factor", number("factor", self.factor, low=0, above=True))
        object.__setattr__(self, "decay", number("decay", self.decay, low=0, high=1, below=True))
        object.__setattr__(self, "warmup", integer("warmup", self.warmup, low=0))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the empty memory: each average is infinite until its first norm above zero."""
        return {"own": xp.full_like(norms, xp.inf), "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the limits of the warm-up, or a multiple of each average; and the new memory."""
        own, count = state["own"], state["count"]
        warm = count < self.warmup
        total = combine(norms, 2.0, xp)
        over = total > self.start
        shrunk = norms * (self.start / xp.where(over, total, xp.ones_like(total)))
        none = xp.full_like(norms, xp.inf)
        high = xp.where(warm, xp.where(over, shrunk, none), self.factor * own)
        value = xp.where(norms > high, high, norms)
        known = xp.isfinite(own)
        # A norm of zero does not show the tensor's usual size: an average of zero would keep the
        # tensor at zero.
        least = xp.where((value > 0) & (value < own), value, own)
        smooth = average(xp.where(known, own, xp.zeros_like(own)), value, self.decay)
        new = xp.where(warm | ~known, least, smooth)
        return Limits(high=high), {"own": new, "count": count + 1}
