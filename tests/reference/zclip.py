"""ZClip: clip a norm whose z-score is too high, the harder the higher it is.

Kumar et al. 2025, arXiv 2504.02507. The first 25 raw norms give μ (mean) and σ² (population
variance); these steps are not clipped by the z-score. Afterwards, with μ and σ of the past:

    z = (n − μ)/(σ + ε)
    τ = μ + (z*²/z)·σ  if z > z*,  else n            ("reciprocal"; "mean": μ)
    g ← g·min(1, τ/n)
    μ ← α·μ + (1 − α)·τ,  then  σ² ← α·σ² + (1 − α)·(τ − μ)²       (the clipped norm; the new μ)

α = 0.97 and z* = 2.5 stand in the paper's tables; the 25 steps, ε, what enters μ and σ², and the
order are read from the authors' code, as the paper's body could not be had. The code also has a
mode "percentile", where τ = μ + z*·σ for every n > τ, without the ε; a factor on τ of "reciprocal";
a switch that keeps spikes out of μ and σ; and a constant limit, 1.0 by default, in the warm-up too.
That limit acts on the gradients only: what enters μ and σ is the value before it. None, the default
here, leaves it out. The code scales by τ/(n + 1e-6); here it is τ/n.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "zclip": {},
    "zclip:max_norm=1.0": {"max_norm": 1.0},
    "zclip:z=1.0,mode=percentile": {"z": 1.0, "option": "percentile"},
    "zclip:z=1.0,clip_option=mean": {"z": 1.0, "option": "mean"},
    "zclip:z=1.0,clip_factor=0.7": {"z": 1.0, "clip_factor": 0.7},
    "zclip:z=1.0,skip_update_on_spike=true": {"z": 1.0, "remember_spikes": False},
}


class Reference:
    """One stream of gradients."""

    def __init__(
        self,
        alpha: float = 0.97,
        z: float = 2.5,
        warmup: int = 25,
        max_norm: float | None = None,
        eps: float = 1e-6,
        option: str = "reciprocal",
        clip_factor: float = 1.0,
        remember_spikes: bool = True,
    ) -> None:
        self.alpha = alpha
        self.z = z
        self.warmup = warmup
        self.max_norm = max_norm
        self.eps = eps
        self.option = option
        self.clip_factor = clip_factor
        self.remember_spikes = remember_spikes
        self.buffer: list[float] = []
        self.mean = math.nan
        self.variance = math.nan
        self.limit = math.inf

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        size = norm(grads)
        if not math.isfinite(size):
            return [np.array(g) for g in grads], True
        self.limit = math.inf if self.max_norm is None else self.max_norm
        if len(self.buffer) < self.warmup:
            self.buffer.append(size)
            if len(self.buffer) == self.warmup:
                self.mean = math.fsum(self.buffer) / self.warmup
                spread = [(x - self.mean) ** 2 for x in self.buffer]
                self.variance = math.fsum(spread) / self.warmup
        else:
            self.judge(size)
        factor = self.limit / size if size > self.limit else 1.0
        return [g * factor for g in grads], False

    def judge(self, size: float) -> None:
        """Lower the limit if the norm is a spike, then remember what is left of it."""
        deviation = math.sqrt(self.variance)
        score = (size - self.mean) / (deviation + self.eps)
        top = self.mean + self.z * deviation
        spike = size > top if self.option == "percentile" else score > self.z
        kept = size
        if spike:
            kept = self.mean
            if self.option == "reciprocal":
                kept = self.clip_factor * (self.mean + self.z**2 / score * deviation)
            elif self.option == "percentile":
                kept = top
            self.limit = min(self.limit, kept)
        if spike and not self.remember_spikes:
            return
        self.mean = self.alpha * self.mean + (1 - self.alpha) * kept
        self.variance = self.alpha * self.variance + (1 - self.alpha) * (kept - self.mean) ** 2


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
