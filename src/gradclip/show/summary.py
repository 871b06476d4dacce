"""A run in a few numbers and one sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..record import Run
from ..record.rows import Floats
from ..record.trace import Trace, traces_of
from .words import percent

__all__ = ["Summary", "summarise", "worst_spike"]

WARM_UP = 20
"""Losses at the start in which no spike is looked for: every run begins high."""


@dataclass(frozen=True)
class Summary:
    """One trace in numbers. Shares are 0 to 1; None: not known."""

    label: str
    policy: str | None
    steps: int
    clipped: int
    skipped: int
    nonfinite: int
    """Steps whose gradient held inf or NaN."""
    loss_seen: bool
    final_loss: float | None
    worst_spike: float | None
    worst_spike_step: int | None
    median_norm: float | None
    status: str
    """How the run ended: "ok", "error: ...", or "no end: still running, or killed"."""

    @property
    def clipped_share(self) -> float | None:
        """Share of the steps that were clipped."""
        return self.clipped / self.steps if self.steps else None

    @property
    def sentence(self) -> str:
        """The run in one line."""
        if not self.steps:
            return "no steps recorded"
        steps = f"{self.steps:,} step" + "s" * (self.steps != 1)
        done = f"clipped {percent(self.clipped_share)} of {steps}"
        if self.policy is None and not self.clipped:
            done = f"{steps}, recorded only"
        parts = [done, f"{self.skipped:,} skipped"]
        if self.nonfinite:
            parts.append(f"{self.nonfinite:,} with a non-finite gradient")
        return "; ".join([*parts, "loss seen" if self.loss_seen else "loss not seen"])


def summarise(run: Run | Trace) -> Summary:
    """Return the summary of a trace, or of a run's first.

    Args:
        run: as `gradclip.read_run` returned it.
    """
    trace = run if isinstance(run, Trace) else traces_of([run])[0]
    loss = trace.column("loss")[trace.seen("loss")]
    steps = trace.steps[trace.seen("loss")]
    norms = trace.column("norm")
    norms = norms[np.isfinite(norms)]
    spike, at = worst_spike(loss)
    end = trace.run.end
    return Summary(
        label=trace.label,
        policy=trace.policy,
        steps=len(trace.steps),
        clipped=int(trace.marked("clipped").sum()),
        skipped=int(trace.marked("skipped").sum()),
        nonfinite=int(trace.nonfinite.sum()),
        loss_seen=bool(len(loss)),
        final_loss=float(loss[-1]) if len(loss) else None,
        worst_spike=spike,
        worst_spike_step=None if at is None else int(steps[at]),
        median_norm=float(np.median(norms)) if len(norms) else None,
        status=end.status if end else "no end: still running, or killed",
    )


def worst_spike(loss: Floats, warm_up: int = WARM_UP) -> tuple[float | None, int | None]:
    """Return the worst rise of the loss over the best before it, and where.

    Formula: max over t > warm_up of loss[t] - min(loss[:t]). A non-finite loss is an infinite
    rise; the best before is the least finite loss. Never under 0: a loss that only falls has none.

    Args:
        loss: shape (n,), in the order of the steps. Not mutated.
        warm_up: number of losses at the start that do not count.

    Returns:
        The rise and its place; None twice where there are not more than `warm_up` + 1 losses.

    Example:
        >>> worst_spike(np.array([3.0, 2.0, 5.0, 1.0]), warm_up=0)
        (3.0, 2)
    """
    if len(loss) <= warm_up + 1:
        return None, None
    high = np.where(np.isfinite(loss), loss, np.inf)
    best = np.minimum.accumulate(high)[:-1]
    with np.errstate(over="ignore", invalid="ignore"):  # far apart, or inf and still no best
        risen = np.where(np.isinf(high[1:]), np.inf, high[1:] - best)
    risen = risen[warm_up:]
    at = int(risen.argmax())
    return max(float(risen[at]), 0.0), at + warm_up + 1
