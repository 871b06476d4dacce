"""Summarise a run in a few numbers and one sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..record import Run
from ..record.rows import Floats
from ..record.trace import Trace, traces_of
from .words import percent

__all__ = ["Summary", "summarise", "worst_spike"]

WARM_UP = 20
"""The number of first losses that cannot be spikes, because every run begins with a high loss."""


@dataclass(frozen=True)
class Summary:
    """One trace in numbers; None is an unknown number."""

    label: str
    policy: str | None
    steps: int
    clipped: int
    skipped: int
    nonfinite: int
    """The number of steps with inf or NaN in a gradient."""
    loss_seen: bool
    final_loss: float | None
    worst_spike: float | None
    worst_spike_step: int | None
    median_norm: float | None
    status: str
    """The end of the run: "ok", "error: ...", or "no end: still running, or killed"."""

    @property
    def clipped_share(self) -> float | None:
        """The share of clipped steps, 0 to 1; None without a step."""
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
    """Return the summary of a trace, or of the first trace of a run.

    Args:
        run: a trace, or a run from `gradclip.read_run`; not mutated.
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
    """Return the largest rise of the loss over the lowest earlier loss, and its place.

    max over t > warm_up of loss[t] - min(loss[:t]), at least 0. A non-finite loss is an infinite
    rise and does not count as an earlier loss.

    Args:
        loss: shape (n,), in the order of the steps. Not mutated.
        warm_up: the number of first losses that do not count, ≥ 0.

    Returns:
        The rise and its index; (None, None) for at most `warm_up` + 1 losses.

    Example:
        >>> worst_spike(np.array([3.0, 2.0, 5.0, 1.0]), warm_up=0)
        (3.0, 2)
    """
    if len(loss) <= warm_up + 1:
        return None, None
    high = np.where(np.isfinite(loss), loss, np.inf)
    best = np.minimum.accumulate(high)[:-1]
    with np.errstate(over="ignore", invalid="ignore"):  # A difference may be inf or NaN.
        risen = np.where(np.isinf(high[1:]), np.inf, high[1:] - best)
    risen = risen[warm_up:]
    at = int(risen.argmax())
    return max(float(risen[at]), 0.0), at + warm_up + 1
