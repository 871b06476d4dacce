"""Limits from running means and variances of the norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...arrays import Array, Namespace, Norms
from ...checks import choice, flag, integer, number
from .base import Context, Limits, State, average, corrected
from .quantile import empty_ring, places, push

__all__ = ["MeanStd", "MovingAverage", "MovingBand", "WindowZScore", "ZScore"]


@dataclass(frozen=True)
class MovingAverage:
    """Limit the norm to a multiple of the moving average of the norms.

    high = factor·m̂, m̂ = m/(1-decayᵗ), m ← decay·m + (1-decay)·n.

    Args:
        factor: the multiple of the average, > 0.
        decay: the weight of the old average, in [0, 1).
        warmup: the number of norms before there is a limit, ≥ 0.
        current: whether this step's raw norm counts for its own limit.
        clipped: whether the memory takes the norm after clipping; only if current is false.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: an average of 0 sets no limit, because a limit of 0 would keep the gradient at 0.
    """

    factor: float
    decay: float
    warmup: int = 1
    current: bool = False
    clipped: bool = True

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "factor", number("factor", self.factor, low=0, above=True))
        object.__setattr__(self, "decay", number("decay", self.decay, low=0, high=1, below=True))
        object.__setattr__(self, "warmup", integer("warmup", self.warmup, low=0))
        object.__setattr__(self, "current", flag("current", self.current))
        object.__setattr__(self, "clipped", flag("clipped", self.clipped))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return averages of zero, and the count of norms."""
        return {"mean": xp.zeros_like(norms), "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return a multiple of the average, and the new memory."""
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
        # A mean of zero does not show the usual size: a limit of zero would keep the gradient
        # at zero.
        ready = (count >= self.warmup) & (count > 0) & (state["mean"] > 0)
        some = xp.where(ready, count, xp.ones_like(count))
        high = self.factor * corrected(state["mean"], self.decay, some, xp)
        return xp.where(ready, high, xp.full_like(high, xp.inf))


@dataclass(frozen=True)
class MeanStd:
    """Limit the norm to the mean plus k standard deviations of all earlier norms.

    high = μ + k·s over all norms before this one.

    Args:
        k: the number of standard deviations, ≥ 0.
        warmup: the number of norms before there is a limit, ≥ 2.
        clipped: whether the memory takes the norm after clipping.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: the mean and the variance are Welford's running ones. A mean of 0 sets no limit,
    because a limit of 0 would keep the gradient at 0.
    """

    k: float
    warmup: int
    clipped: bool = True

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "k", number("k", self.k, low=0))
        object.__setattr__(self, "warmup", integer("warmup", self.warmup, low=2))
        object.__setattr__(self, "clipped", flag("clipped", self.clipped))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return statistics of zero, and the count of norms."""
        return {name: xp.zeros_like(norms) for name in ("mean", "squares", "count")}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the mean plus k deviations, and the new memory."""
        mean, count = state["mean"], state["count"]
        ready = count >= self.warmup
        freedom = xp.where(ready, count - 1, xp.ones_like(count))
        high = mean + self.k * xp.sqrt(state["squares"] / freedom)
        # A mean of zero does not show the usual size: a limit of zero would keep the gradient
        # at zero.
        high = xp.where(ready & (mean > 0), high, xp.full_like(high, xp.inf))
        value = xp.where(norms > high, high, norms) if self.clipped else norms
        step = value - mean
        moved = mean + step / (count + 1)
        squares = state["squares"] + step * (value - moved)
        return Limits(high=high), {"mean": moved, "squares": squares, "count": count + 1}


@dataclass(frozen=True)
class ZScore:
    """Limit a norm that is an outlier of the moving mean and variance of the norms (ZClip).

    z = (n-μ)/(s+eps); high = μ + s·z_max²/z if z > z_max, else inf.

    Args:
        z_max: the largest z-score that stays unchanged, > 0.
        decay: the weight of the old mean and variance, in [0, 1).
        warmup: the number of norms in the first mean and variance, which have no limit, ≥ 2.
        eps: added to the deviation s, ≥ 0.
        form: the limit of an outlier: "reciprocal", the formula above; "mean", μ; "percentile",
            μ + z_max·s, and then every norm above this limit is an outlier.
        factor: the factor of the limit of the form "reciprocal", > 0.
        remember_spikes: whether the limit of an outlier enters the mean and the variance.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: as long as the variance is 0, no norm is an outlier.

    Source: Kumar et al. 2025, section 3; the forms "mean" and "percentile" are options of the
    authors' code.
    """

    z_max: float
    decay: float
    warmup: int
    eps: float
    form: Literal["reciprocal", "mean", "percentile"] = "reciprocal"
    factor: float = 1.0
    remember_spikes: bool = True

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
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
        """Return statistics of zero, and the count of norms."""
        return {name: xp.zeros_like(norms) for name in ("mean", "variance", "count")}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return limits for outliers only, and the memory with the clipped norms."""
        mean, variance, count = state["mean"], state["variance"], state["count"]
        warm = count < self.warmup
        deviation = xp.sqrt(variance)
        # A z-score needs a variance above zero.
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
        # In the warm-up this is the plain variance, afterwards the moving variance.
        square = xp.where(warm, (value - mean) * (value - moved), (value - moved) * (value - moved))
        changed = variance + gain * (square - variance)
        if not self.remember_spikes:
            moved, changed = xp.where(spike, mean, moved), xp.where(spike, variance, changed)
        return Limits(high=high), {"mean": moved, "variance": changed, "count": count + 1}


@dataclass(frozen=True)
class MovingBand:
    """Keep the norm in a band around the moving average of the norms (AGGC).

    low = max(min_norm, α_low·S), high = α_high·S, with S the moving average of the norms.

    Args:
        decay: the weight of the old average, in [0, 1).
        low: α_low ≥ 0.
        high: α_high ≥ low.
        min_norm: the smallest lower bound, ≥ 0; the upper bound limits it.
        current: whether this step's raw norm enters S before the limits are taken; if false, the
            norm after clipping enters S afterwards.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: S starts at the first norm that is not zero.

    Source: AGGC, arXiv:2601.11864, section 3.
    """

    decay: float
    low: float
    high: float
    min_norm: float
    current: bool = True

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "decay", number("decay", self.decay, low=0, high=1, below=True))
        object.__setattr__(self, "low", number("low", self.low, low=0))
        object.__setattr__(self, "high", number("high", self.high, low=self.low))
        object.__setattr__(self, "min_norm", number("min_norm", self.min_norm, low=0))
        object.__setattr__(self, "current", flag("current", self.current))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return averages of zero."""
        return {"mean": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the band around the average, and the new memory."""
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
    """Limit a value to the mean plus k standard deviations of the last values.

    high = μ + k·s over the last `window` values before this one.

    Args:
        k: the number of standard deviations, > 0.
        window: the number of values that are remembered, ≥ 2.
        minimum: the number of values, this one included, before there is a limit, ≥ 3.

    Raises:
        PolicyError: an argument is out of its range.

    Source: OLMo-core, SkipStepOptimizer.
    """

    k: float
    window: int
    minimum: int

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "k", number("k", self.k, low=0, above=True))
        object.__setattr__(self, "window", integer("window", self.window, low=2))
        object.__setattr__(self, "minimum", integer("minimum", self.minimum, low=3))

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return an empty ring buffer, and the count of values."""
        history = empty_ring(norms, self.window, xp)
        return {"history": history, "count": xp.zeros_like(norms)}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the mean plus k deviations, and the memory with this step's raw value."""
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
