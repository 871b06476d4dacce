"""Limits from running means and variances of the norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...arrays import Array, Namespace, Norms
from ...checks import choice, flag, integer, number
from .base import Context, Limits, State, average, corrected
from .quantile import places, push

__all__ = ["MeanStd", "MovingAverage", "MovingBand", "WindowZScore", "ZScore"]


@dataclass(frozen=True)
class MovingAverage:
    """high = factor·m̂, with m̂ the bias-corrected moving average of the norms.

    Args:
        factor: > 0.
        decay: of the average, in [0, 1).
        warmup: no limit before this many norms were context.
        current: whether this step's norm counts for its own limit.
        clipped: whether the memory takes the norm after clipping.
    """

    factor: float
    decay: float
    warmup: int = 1
    current: bool = False
    clipped: bool = True

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "factor", number("factor", self.factor, low=0, above=True))
        object.__setattr__(self, "decay", number("decay", self.decay, low=0, high=1, below=True))
        object.__setattr__(self, "warmup", integer("warmup", self.warmup, low=0))
        object.__setattr__(self, "current", flag("current", self.current))
        object.__setattr__(self, "clipped", flag("clipped", self.clipped))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return an average of nothing."""
        return {"mean": xp.zeros_like(norms), "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return a multiple of the average."""
        if self.current:
            new = self._with(state, norms)
            return Limits(high=self._limit(new, xp)), new
        high = self._limit(state, xp)
        value = xp.where(norms > high, high, norms) if self.clipped else norms
        return Limits(high=high), self._with(state, value)

    def _with(self, state: State, value: Array) -> State:
        mean = average(state["mean"], value, self.decay)
        return {"mean": mean, "count": state["count"] + 1}

    def _limit(self, state: State, xp: Namespace) -> Array:
        count = state["count"]
        # Zeros alone say nothing of the usual size: as a limit they would lock the gradient.
        ready = (count >= self.warmup) & (count > 0) & (state["mean"] > 0)
        some = xp.where(ready, count, xp.ones_like(count))
        high = self.factor * corrected(state["mean"], self.decay, some)
        return xp.where(ready, high, xp.full_like(high, xp.inf))


@dataclass(frozen=True)
class MeanStd:
    """high = μ + k·s over all norms before this one (Welford's running mean and variance).

    Args:
        k: how many standard deviations, ≥ 0.
        warmup: no limit before this many norms were seen, ≥ 2.
        clipped: whether the memory takes the norm after clipping.
    """

    k: float
    warmup: int
    clipped: bool = True

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "k", number("k", self.k, low=0))
        object.__setattr__(self, "warmup", integer("warmup", self.warmup, low=2))
        object.__setattr__(self, "clipped", flag("clipped", self.clipped))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the statistics of nothing."""
        return {name: xp.zeros_like(norms) for name in ("mean", "squares", "count")}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the mean and so many deviations."""
        mean, count = state["mean"], state["count"]
        ready = count >= self.warmup
        freedom = xp.where(ready, count - 1, xp.ones_like(count))
        high = mean + self.k * xp.sqrt(state["squares"] / freedom)
        # Zeros alone say nothing of the usual size: as a limit they would lock the gradient.
        high = xp.where(ready & (mean > 0), high, xp.full_like(high, xp.inf))
        value = xp.where(norms > high, high, norms) if self.clipped else norms
        step = value - mean
        moved = mean + step / (count + 1)
        squares = state["squares"] + step * (value - moved)
        return Limits(high=high), {"mean": moved, "squares": squares, "count": count + 1}


@dataclass(frozen=True)
class ZScore:
    """ZClip's limit: z = (n-μ)/(s+eps); a spike z > z_max is cut to μ + s·z_max²/z.

    Args:
        z_max: the largest z that stays as it is, > 0.
        decay: of the moving mean and variance, in [0, 1).
        warmup: norms that make the first mean and variance, and have no limit, ≥ 2.
        eps: added to the deviation, ≥ 0.
        form: where a spike is cut to: "reciprocal", as above; "mean", to μ; "percentile", to
            μ + z_max·s, and every norm above this limit is a spike.
        factor: the limit of the form "reciprocal" is multiplied by it, > 0.
        remember_spikes: whether a spike's limit enters the mean and the variance.
    """

    z_max: float
    decay: float
    warmup: int
    eps: float
    form: Literal["reciprocal", "mean", "percentile"] = "reciprocal"
    factor: float = 1.0
    remember_spikes: bool = True

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "z_max", number("z_max", self.z_max, low=0, above=True))
        object.__setattr__(self, "decay", number("decay", self.decay, low=0, high=1, below=True))
        object.__setattr__(self, "warmup", integer("warmup", self.warmup, low=2))
        object.__setattr__(self, "eps", number("eps", self.eps, low=0))
        forms = ("reciprocal", "mean", "percentile")
        object.__setattr__(self, "form", choice("form", self.form, forms))
        object.__setattr__(self, "factor", number("factor", self.factor, low=0, above=True))
        kept = flag("remember_spikes", self.remember_spikes)
        object.__setattr__(self, "remember_spikes", kept)

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the statistics of nothing."""
        return {name: xp.zeros_like(norms) for name in ("mean", "variance", "count")}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return a limit where there is a spike; what is remembered is the clipped norm."""
        mean, variance, count = state["mean"], state["variance"], state["count"]
        warm = count < self.warmup
        deviation = xp.sqrt(variance)
        # Without any variance there is no scale to call a norm a spike on.
        known = ~warm & (deviation > 0)
        z = (norms - mean) / xp.where(known, deviation + self.eps, xp.ones_like(deviation))
        spike = known & (z > self.z_max)
        if self.form == "percentile":
            cut = mean + self.z_max * deviation
            spike = known & (norms > cut)
        elif self.form == "mean":
            cut = mean
        else:
            cut = mean + deviation * self.z_max**2 / xp.where(spike, z, xp.ones_like(z))
            cut = self.factor * cut
        high = xp.where(spike, cut, xp.full_like(cut, xp.inf))
        value = xp.where(spike, cut, norms)
        gain = xp.where(warm, 1 / (count + 1), (1 - self.decay) * xp.ones_like(count))
        moved = mean + gain * (value - mean)
        # Over the warm-up this is the plain variance, afterwards the moving one.
        square = xp.where(warm, (value - mean) * (value - moved), (value - moved) ** 2)
        changed = variance + gain * (square - variance)
        if not self.remember_spikes:
            moved, changed = xp.where(spike, mean, moved), xp.where(spike, variance, changed)
        return Limits(high=high), {"mean": moved, "variance": changed, "count": count + 1}


@dataclass(frozen=True)
class MovingBand:
    """low = max(min_norm, α_low·S), high = α_high·S, with S the moving average of the norms.

    Args:
        decay: of the average, in [0, 1).
        low: α_low ≥ 0.
        high: α_high ≥ low.
        min_norm: the least lower bound, ≥ 0; never above the upper one.
        current: whether this step's norm, as it is, enters before the limits are taken; else
            the clipped one enters afterwards.
    """

    decay: float
    low: float
    high: float
    min_norm: float
    current: bool = True

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "decay", number("decay", self.decay, low=0, high=1, below=True))
        object.__setattr__(self, "low", number("low", self.low, low=0))
        object.__setattr__(self, "high", number("high", self.high, low=self.low))
        object.__setattr__(self, "min_norm", number("min_norm", self.min_norm, low=0))
        object.__setattr__(self, "current", flag("current", self.current))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return an average of nothing, which is zero."""
        return {"mean": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return a band around the average, which starts at the first norm that is not zero."""
        if self.current:
            new = self._with(state, norms, xp)
            return self._band(new, xp), new
        limits = self._band(state, xp)
        cut = xp.where(norms > limits.high, limits.high, norms)
        raised = xp.where((norms > 0) & (norms < limits.low), limits.low, cut)
        return limits, self._with(state, raised, xp)

    def _with(self, state: State, value: Array, xp: Namespace) -> State:
        old = state["mean"]
        return {"mean": xp.where(old > 0, average(old, value, self.decay), value)}

    def _band(self, state: State, xp: Namespace) -> Limits:
        mean = state["mean"]
        none = xp.full_like(mean, xp.inf)
        high = xp.where(mean > 0, self.high * mean, none)
        low = self.low * mean
        low = xp.where(low > self.min_norm, low, self.min_norm * xp.ones_like(low))
        low = xp.where(mean > 0, low, xp.zeros_like(low))
        return Limits(xp.where(low < high, low, high), high)


@dataclass(frozen=True)
class WindowZScore:
    """high = μ + k·s over the last values before this one.

    Args:
        k: how many standard deviations, > 0.
        window: how many values are remembered, ≥ 2.
        minimum: no limit before this many values, this one counted, were seen, ≥ 3.
    """

    k: float
    window: int
    minimum: int

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "k", number("k", self.k, low=0, above=True))
        object.__setattr__(self, "window", integer("window", self.window, low=2))
        object.__setattr__(self, "minimum", integer("minimum", self.minimum, low=3))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return an empty ring buffer."""
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
        """Return the mean and so many deviations; remember the value as it is."""
        history, count = state["history"], state["count"]
        filled = xp.where(count < self.window, count, self.window * xp.ones_like(count))
        ready = filled + 1 >= self.minimum
        some = xp.where(ready, filled, 2 * xp.ones_like(filled))
        mean = xp.sum(history, axis=1) / some
        used = places(history, xp) < filled[:, None]
        gaps = xp.where(used, history - mean[:, None], xp.zeros_like(history))
        high = mean + self.k * xp.sqrt(xp.sum(gaps**2, axis=1) / (some - 1))
        high = xp.where(ready, high, xp.full_like(high, xp.inf))
        return Limits(high=high), {"history": push(history, count, norms, xp), "count": count + 1}
