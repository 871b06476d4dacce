"""Find spikes of the norm and of the loss, and their order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..record.rows import Floats
from ..record.trace import Trace
from .finding import Finding
from .window import MIN_VALUES, median, usual_before

__all__ = [
    "LossSpike",
    "began_at",
    "find_spikes",
    "first_of",
    "loss_spikes",
    "norm_bound",
    "norm_spikes",
]

DEVIATIONS = 6.0
"""A spike exceeds the usual value by this many robust standard deviations. With 3, healthy steps
would be spikes, because norms are skewed."""

RATIO = 2.0
"""A norm under twice the usual norm is not a spike, even after very quiet steps."""

RISE = 0.1
"""A rise of the loss under this share of the first loss is not a spike."""

HARMFUL = 0.25
"""A spike of two or more steps is a warning from this share of the first loss on. A spike of one
step is a warning from the whole first loss on; a smaller spike may be a hard batch."""

LEAD = 10
"""A norm spike leads to a loss spike if it is at most this many steps earlier. Two high losses at
most this many steps apart are one spike."""

FIRST = 10
"""The number of first losses whose median is the level at the start."""


@dataclass(frozen=True)
class LossSpike:
    """A stretch of steps with an unusually high loss.

    Attributes:
        step: the first step.
        end: the last step.
        peak: the step with the highest loss.
        high: the number of steps with an unusually high loss.
        rise: the largest rise over the usual loss before; inf if the loss was not finite.
        norm_step: the last earlier step with a norm spike, at most `LEAD` steps before; else None.
        norm_ratio: the norm of that step over the usual norm; None without such a step.
        norm_with: whether the first step has a norm spike too, as a bad batch has.
    """

    step: int
    end: int
    peak: int
    high: int
    rise: float
    norm_step: int | None
    norm_ratio: float | None
    norm_with: bool


@np.errstate(all="ignore")
def norm_bound(norm: Floats, least: int = MIN_VALUES) -> Floats:
    """Return the bound for each norm; a norm over its bound is a spike.

    max(median + 6·1.4826·MAD, 2·median) of the finite norms before.

    Args:
        norm: shape (n,); not mutated.
        least: the smallest number of earlier finite norms for a bound, ≥ 1.

    Returns:
        Shape (n,); NaN after fewer than `least` finite norms.
    """
    usual = usual_before(norm, least=least)
    return np.maximum(usual.median + DEVIATIONS * usual.deviation, RATIO * usual.median)


def norm_spikes(norm: Floats) -> NDArray[np.bool_]:
    """Return whether each norm is finite and a spike."""
    return np.isfinite(norm) & (norm > norm_bound(norm))


@np.errstate(all="ignore")
def loss_spikes(trace: Trace) -> list[LossSpike]:
    """Return the stretches in which the loss exceeds the usual loss before by far."""
    seen = trace.seen("loss")
    loss, steps = trace.column("loss")[seen], trace.steps[seen]
    usual = usual_before(loss)
    least = RISE * abs(first_of(loss))
    rise = loss - usual.median
    high = rise > np.fmax(DEVIATIONS * usual.deviation, least)
    # The first losses have no usual value yet: compare them with the loss before any training.
    early = np.isnan(usual.median)
    rise = np.where(early, loss - first_of(loss), rise)
    high |= early & (rise > HARMFUL * abs(first_of(loss)))
    bad = ~np.isfinite(loss)
    rise = np.where(bad, np.inf, rise)
    places = np.flatnonzero(high | bad)
    if not len(places):
        return []
    norm = trace.column("norm")
    spiking = norm > norm_bound(norm, least=1)
    spikes = np.flatnonzero(spiking)
    spike_steps = trace.steps[spikes]
    ratio = norm / usual_before(norm, least=1).median
    found = []
    for group in np.split(places, np.flatnonzero(np.diff(places) > LEAD) + 1):
        first = int(steps[group[0]])
        before = spikes[slice(*np.searchsorted(spike_steps, [first - LEAD, first]))]
        found.append(
            LossSpike(
                step=first,
                end=int(steps[group[-1]]),
                peak=int(steps[group[rise[group].argmax()]]),
                high=len(group),
                rise=float(rise[group].max()),
                norm_step=int(trace.steps[before[-1]]) if len(before) else None,
                norm_ratio=float(ratio[before[-1]]) if len(before) else None,
                norm_with=bool(
                    spiking[slice(*np.searchsorted(trace.steps, [first, first + 1]))].any()
                ),
            )
        )
    return found


def began_at(loss: Floats) -> float:
    """Return the median of the first finite losses; NaN without a finite loss."""
    return median(loss[np.isfinite(loss)][:FIRST])


def first_of(loss: Floats) -> float:
    """Return the first finite loss, before any training; NaN without a finite loss."""
    finite = loss[np.isfinite(loss)]
    return float(finite[0]) if len(finite) else float("nan")


def find_spikes(trace: Trace) -> list[Finding]:
    """Return at most one finding on the losses and one on the norms."""
    spikes = loss_spikes(trace)
    found = []
    if spikes:
        found.append(_of_loss(trace, spikes))
    norm = trace.column("norm")
    alone = norm_spikes(norm)
    for spike in spikes:  # The finding on the loss includes these norm spikes.
        start = np.searchsorted(trace.steps, spike.step - LEAD)
        alone[start : np.searchsorted(trace.steps, spike.end, side="right")] = False
    if alone.any():
        found.append(_of_norm(trace, norm, alone))
    return found


def _of_loss(trace: Trace, spikes: list[LossSpike]) -> Finding:
    worst = max(spikes, key=lambda spike: spike.rise)
    led = [spike for spike in spikes if spike.norm_step is not None]
    level = abs(first_of(trace.column("loss")))
    harmful = any(
        not spike.rise < level or (spike.high > 1 and spike.rise >= HARMFUL * level)
        for spike in spikes
    )
    times = f"The loss spiked {len(spikes)} times" if len(spikes) > 1 else "The loss spiked once"
    rose = "became non-finite" if np.isinf(worst.rise) else f"rose by {worst.rise:.3g}"
    sentence = f"{times}, worst at step {worst.peak:,}, where it {rose}; "
    together = [spike for spike in spikes if spike.norm_with and spike not in led]
    if led:
        count = "it" if len(spikes) == 1 else f"{len(led)} of them"
        sentence += f"a spike of the gradient norm came before {count}."
        suggestion = (
            "Clip: the norm spikes before the loss. `gradclip advise` finds a threshold that "
            "catches such spikes."
        )
    elif together:
        count = "it" if len(spikes) == 1 else f"{len(together)} of them"
        sentence += f"no spike of the gradient norm came before, but one came with {count}."
        suggestion = (
            "Check the batches of these steps; clipping limits the effect of their large gradients."
        )
    else:
        sentence += "no spike of the gradient norm came before."
        suggestion = (
            "Check the batches of these steps and the learning rate: clipping by the norm would "
            "not have changed these steps."
        )
    return Finding(
        "loss-spike",
        "warning" if harmful else "note",
        spikes[0].step,
        sentence,
        suggestion,
        {
            "spikes": len(spikes),
            "steps": [spike.step for spike in spikes[:20]],
            "worst_step": worst.peak,
            "worst_rise": worst.rise,
            "after_a_norm_spike": len(led),
            "with_a_norm_spike": len(together),
            "norm_steps": [spike.norm_step for spike in led[:20]],
            "norm_ratios": [spike.norm_ratio for spike in led[:20]],
        },
        trace.optimizer,
    )


def _of_norm(trace: Trace, norm: Floats, alone: NDArray[np.bool_]) -> Finding:
    steps = trace.steps[alone].astype(int).tolist()
    ratios = (norm / usual_before(norm).median)[alone]
    worst = int(ratios.argmax())
    times = f"{len(steps)} times" if len(steps) > 1 else "once"
    return Finding(
        "norm-spike",
        "note",
        steps[0],
        f"The gradient norm spiked {times} with no spike of the loss, at most {ratios[worst]:.3g}"
        f" times its usual value (step {steps[worst]:,}).",
        "You need not change anything; a threshold between the usual norm and these spikes is a "
        "safety net.",
        {
            "spikes": len(steps),
            "steps": steps[:20],
            "worst_step": steps[worst],
            "worst_ratio": float(ratios[worst]),
        },
        trace.optimizer,
    )
