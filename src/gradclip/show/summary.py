"""Summarise a run in a few numbers and one sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..diagnosis.spikes import loss_spikes, worst_spike
from ..diagnosis.stability import final_loss_of
from ..record import Run
from ..record.trace import Trace, traces_of
from .words import counted, percent

__all__ = ["Summary", "summarise"]


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
    """The median of the last losses, from `gradclip.diagnosis.stability.final_loss_of`."""
    worst_spike: float | None
    """The largest rise of `gradclip.diagnosis.spikes.worst_spike`; 0 for a loss without spikes."""
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
        steps = counted(self.steps, "step")
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
    norms = trace.column("norm")
    norms = norms[np.isfinite(norms)]
    spike = worst_spike(loss_spikes(trace))
    end = trace.run.end
    return Summary(
        label=trace.label,
        policy=trace.policy,
        steps=len(trace.steps),
        clipped=int(trace.marked("clipped").sum()),
        skipped=int(trace.marked("skipped").sum()),
        nonfinite=int(trace.nonfinite.sum()),
        loss_seen=bool(len(loss)),
        final_loss=final_loss_of(trace),
        worst_spike=spike.rise if spike else 0.0 if len(loss) else None,
        worst_spike_step=spike.peak if spike else None,
        median_norm=float(np.median(norms)) if len(norms) else None,
        status=end.status if end else "no end: still running, or killed",
    )
