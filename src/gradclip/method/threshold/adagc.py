"""AdaGC's limit: each tensor against its own smoothed norm, after a globally clipped start."""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Namespace, Norms
from ...checks import integer, number
from ..measure import combine
from .base import Context, Limits, State, average

__all__ = ["OwnAverage"]


@dataclass(frozen=True)
class OwnAverage:
    """Warm-up: the global norm is clipped to start, γᵢ = min(γᵢ, ‖ĝᵢ‖); then high = factor·γᵢ.

    After the warm-up γᵢ ← decay·γᵢ + (1-decay)·‖ĝᵢ‖, with ĝ the clipped gradient.

    Args:
        start: the global limit of the warm-up, > 0.
        factor: > 0.
        decay: of γ, in [0, 1).
        warmup: steps of the warm-up, ≥ 0.
    """

    start: float
    factor: float
    decay: float
    warmup: int

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "start", number("start", self.start, low=0, above=True))
        object.__setattr__(self, "factor", number("factor", self.factor, low=0, above=True))
        object.__setattr__(self, "decay", number("decay", self.decay, low=0, high=1, below=True))
        object.__setattr__(self, "warmup", integer("warmup", self.warmup, low=0))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return no average: infinite until a norm that is not zero was context."""
        return {"own": xp.full_like(norms, xp.inf), "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the limits of the warm-up, or those of each tensor's own average."""
        own, count = state["own"], state["count"]
        warm = count < self.warmup
        total = combine(norms, 2.0, xp)
        over = total > self.start
        shrunk = norms * (self.start / xp.where(over, total, xp.ones_like(total)))
        none = xp.full_like(norms, xp.inf)
        high = xp.where(warm, xp.where(over, shrunk, none), self.factor * own)
        value = xp.where(norms > high, high, norms)
        known = xp.isfinite(own)
        # A zero says nothing of a tensor's usual size: as its average it would lock the tensor.
        least = xp.where((value > 0) & (value < own), value, own)
        smooth = average(xp.where(known, own, xp.zeros_like(own)), value, self.decay)
        new = xp.where(warm | ~known, least, smooth)
        return Limits(high=high), {"own": new, "count": count + 1}
