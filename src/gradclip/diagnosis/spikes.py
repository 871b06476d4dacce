"""Find spikes of the norm and of the loss, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..record.rows import Floats
from ..record.trace import Trace
from .finding import Finding
from .ruin import ruin_of
from .window import MIN_VALUES, WINDOW, median, usual_before

__all__ = [
    "LossSpike",
    "began_at",
    "find_spikes",
    "first_of",
    "level_of",
    "loss_spikes",
    "norm_bound",
    "norm_spikes",
    "rises",
    "worst_spike",
]

DEVIATIONS = 6.0
"""A spike exceeds the usual value by this many robust standard deviations. With 3, healthy steps
would be spikes, because norms are skewed."""

RATIO = 2.0
"""A norm under twice the usual norm is not a spike, even after very quiet steps."""

RISE = 0.1
"""A rise of the loss under this share of the first loss is not a spike."""

HARMFUL = 0.25
"""A spike is a warning from this share of the first losses on, if it lasts. A spike of one step may
be a hard batch."""

LOG_DEVIATIONS = 4.0
"""A loss above zero must also exceed its usual logarithm by this many deviations."""

MIN_EARLY = 3
"""The smallest number of losses before a loss that can be a spike: one loss is not a baseline."""

EARLY = 2.0
"""One of the first losses is a spike if it exceeds all before by this multiple of their range, and
by the whole loss before training."""

LONG = 3
"""The number of high losses in a row that are more than hard batches."""

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
        lasting: the largest number of such steps in a row.
        rise: the largest rise over the lowest loss before; inf if the loss was not finite. This is
            the one measure of a spike: the report, the demo, the tuner and the diagnosis have it
            from here.
        top: the highest loss; inf if the loss was not finite.
        norm_step: the last earlier step with a norm spike, at most `LEAD` steps before; else None.
        norm_ratio: the norm of that step over the usual norm; None without such a step.
        early: whether fewer than `MIN_VALUES` losses came before.
        norm_with: whether the first step has a norm spike too, as a bad batch has.
    """

    step: int
    end: int
    peak: int
    high: int
    lasting: int
    rise: float
    top: float
    norm_step: int | None
    norm_ratio: float | None
    early: bool
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
def loss_spikes(trace: Trace, until: int | None = None) -> list[LossSpike]:
    """Return the stretches in which the loss exceeds the usual loss before by far.

    Args:
        trace: the steps of one optimizer; not mutated.
        until: the row at which to stop; None takes all rows.
    """
    seen = np.flatnonzero(trace.seen("loss")[:until])
    loss, steps = trace.column("loss")[seen], trace.steps[seen]
    groups = _stretches(loss)
    if not groups:
        return []
    rise, height = rises(loss), np.where(np.isfinite(loss), loss, np.inf)
    norm = trace.column("norm")
    spiking = norm > norm_bound(norm, least=MIN_EARLY)
    spikes = np.flatnonzero(spiking)
    spike_steps = trace.steps[spikes]
    ratio = norm / usual_before(norm, least=1).median
    found = []
    for group in groups:
        first = int(steps[group[0]])
        before = spikes[slice(*np.searchsorted(spike_steps, [first - LEAD, first]))]
        rows = np.split(group, np.flatnonzero(np.diff(group) > 1) + 1)
        found.append(
            LossSpike(
                step=first,
                end=int(steps[group[-1]]),
                peak=int(steps[group[rise[group].argmax()]]),
                high=len(group),
                lasting=max(map(len, rows)),
                rise=float(rise[group].max()),
                top=float(height[group].max()),
                norm_step=int(trace.steps[before[-1]]) if len(before) else None,
                norm_ratio=float(ratio[before[-1]]) if len(before) else None,
                early=bool(np.isfinite(loss[: group[0]]).sum() < MIN_VALUES),
                norm_with=bool(
                    spiking[slice(*np.searchsorted(trace.steps, [first, first + 1]))].any()
                ),
            )
        )
    return found


def worst_spike(spikes: Sequence[LossSpike]) -> LossSpike | None:
    """Return the spike with the largest rise; of equal ones the first; None without a spike."""
    return max(spikes, key=lambda spike: spike.rise, default=None)


@np.errstate(all="ignore")
def rises(loss: Floats) -> Floats:
    """Return the rise of each loss over the lowest loss before it; the first has none.

    Args:
        loss: shape (n,), in the order of the steps; not mutated.

    Returns:
        Shape (n,). A loss that is not finite is an infinite rise, and no lowest loss.

    Example:
        >>> rises(np.array([3.0, 2.0, 5.0, np.nan])).tolist()
        [0.0, -1.0, 3.0, inf]
    """
    height = np.where(np.isfinite(loss), loss, np.inf)
    lowest = np.concatenate([height[:1], np.minimum.accumulate(height)[:-1]])
    return np.where(np.isinf(height), np.inf, np.where(np.isinf(lowest), 0.0, height - lowest))


def _bounds(loss: Floats) -> Floats:
    """Return the bound of each loss: a loss over its bound is unusually high; NaN without one."""
    usual = usual_before(loss)
    level = level_of(loss)
    bound = usual.median + np.fmax(DEVIATIONS * usual.deviation, RISE * level)
    # The losses of tiny batches have a long tail: they are usual on a logarithmic scale.
    logs = usual_before(np.where(loss > 0, np.log(loss), np.nan))
    tail = np.where(usual.median > 0, np.exp(logs.median + LOG_DEVIATIONS * logs.deviation), np.nan)
    bound = np.where(np.isnan(bound), np.nan, np.fmax(bound, tail))
    # The first losses have no usual value yet: compare them with the highest of the few before.
    for row in np.flatnonzero(np.isnan(bound)):
        before = loss[:row][np.isfinite(loss[:row])]
        if len(before) >= MIN_EARLY:
            least = max(EARLY * float(np.ptp(before)), abs(float(np.median(before))))
            bound[row] = before.max() + least
    return bound


def _stretches(loss: Floats) -> list[NDArray[np.intp]]:
    """Return the rows of each spike: its high losses, until the loss is back for `LEAD` steps.

    A loss that comes after the first one of a spike is high if it exceeds the bound of the first:
    a loss that stays high is not usual, although the median comes to follow it.
    """
    bound, lost = _bounds(loss), ~np.isfinite(loss)
    high = (loss > bound) | lost
    found: list[NDArray[np.intp]] = []
    row, starts = 0, np.flatnonzero(high)
    while len(later := starts[np.searchsorted(starts, row) :]):
        first = int(later[0])
        here = lost[first:] | high[first:] | (loss[first:] > bound[first])
        rows = first + np.flatnonzero(here)
        gaps = np.flatnonzero(np.diff(rows) > LEAD)
        rows = rows[: gaps[0] + 1] if len(gaps) else rows
        found.append(rows)
        row = int(rows[-1]) + 1
    return found


def level_of(loss: Floats) -> float:
    """Return the size of the loss before training: the median of the first few finite losses.

    A loss that crosses zero, as many of reinforcement learning do, is as large as its deviations.
    """
    finite = loss[np.isfinite(loss)]
    if not len(finite):
        return float("nan")
    level = abs(float(np.median(finite[:MIN_EARLY])))
    crosses = (finite[:WINDOW] < 0).any() and (finite[:WINDOW] > 0).any()
    return max(level, float(np.median(np.abs(finite[:WINDOW])))) if crosses else level


def began_at(loss: Floats) -> float:
    """Return the median of the first finite losses; NaN without a finite loss."""
    return median(loss[np.isfinite(loss)][:FIRST])


def first_of(loss: Floats) -> float:
    """Return the first finite loss, before any training; NaN without a finite loss."""
    finite = loss[np.isfinite(loss)]
    return float(finite[0]) if len(finite) else float("nan")


def find_spikes(trace: Trace) -> list[Finding]:
    """Return at most one finding on the losses and one on the norms."""
    ruin = ruin_of(trace)
    spikes = loss_spikes(trace, None if ruin is None else ruin.row)
    found = []
    if spikes:
        found.append(_of_loss(trace, spikes, None if ruin is None else int(trace.steps[ruin.row])))
    norm = trace.column("norm")
    alone = norm_spikes(norm)
    for spike in spikes:  # The finding on the loss includes these norm spikes.
        start = np.searchsorted(trace.steps, spike.step - LEAD)
        alone[start : np.searchsorted(trace.steps, spike.end, side="right")] = False
    if alone.any():
        found.append(_of_norm(trace, norm, alone))
    return found


def _of_loss(trace: Trace, spikes: list[LossSpike], lost: int | None) -> Finding:
    """Return the finding on some spikes, all before the step from which the run is lost."""
    worst = worst_spike(spikes)
    assert worst is not None
    led = [spike for spike in spikes if spike.norm_step is not None]
    level = level_of(trace.column("loss"))
    skipped = set(trace.steps[trace.marked("skipped")].tolist())
    loss, seen = trace.column("loss"), trace.seen("loss")
    untrained = loss[seen & (trace.steps < spikes[0].step)][:FIRST]
    highest = float(np.max(untrained[np.isfinite(untrained)], initial=level))
    harmful = any(_harms(spike, level, highest) for spike in spikes if spike.peak not in skipped)
    times = f"the loss spiked {len(spikes)} times" if len(spikes) > 1 else "the loss spiked once"
    rose = "became non-finite" if np.isinf(worst.rise) else f"rose by {worst.rise:.4g}"
    over = "" if np.isinf(worst.rise) else " over its lowest value before"
    times = f"{times}, worst at step {worst.peak:,}, where it {rose}{over}; "
    sentence = (
        times[0].upper() + times[1:]
        if lost is None
        else f"Before the run was lost at step {lost:,}, {times}"
    )
    together = [spike for spike in spikes if spike.norm_with and spike not in led]
    if led:
        count = "it" if len(spikes) == 1 else f"{len(led)} of them"
        sentence += f"a spike of the gradient norm came before {count}."
        suggestion = (
            "Clip: the norm spikes before the loss. `gradclip advise` names a limit that "
            "catches such spikes."
        )
    elif together:
        count = "it" if len(spikes) == 1 else f"{len(together)} of them"
        sentence += f"no spike of the gradient norm came before, but one came with {count}."
        suggestion = (
            "Check the batches of these steps; clipping limits the effect of their large gradients."
        )
    elif not np.isfinite(trace.column("norm")).any():
        sentence += "the record has no gradient norm."
        suggestion = "Check the batches of these steps and the learning rate."
    else:
        sentence += "no spike of the gradient norm came before."
        suggestion = (
            "Check the batches of these steps and the learning rate: the norms before were as "
            "usual, so that a limit over the usual norm would not have acted."
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


def _harms(spike: LossSpike, level: float, highest: float) -> bool:
    """Return whether a spike is more than a hard batch or a harder task.

    It is if the loss was not finite, or if the loss was high for two steps or more and either the
    norm spiked before or the loss exceeded the loss without training.
    """
    if np.isinf(spike.rise):
        return True
    if spike.rise < HARMFUL * level:
        return False
    led = spike.lasting >= 2 and spike.norm_step is not None
    is_task = spike.norm_with and spike.peak == spike.step
    above = spike.lasting >= LONG and spike.top > highest
    return led or (above and not is_task and not spike.early)


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
