"""Find the samples that made a spike, and those that come back again and again."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ..record.rows import Samples
from ..record.trace import Trace
from .finding import Finding
from .spikes import norm_spikes
from .window import median, usual_before

__all__ = [
    "RankedSample",
    "SpikeSamples",
    "find_recurring_samples",
    "find_spike_samples",
    "ranked_samples",
    "spike_samples",
]

SHARE = 0.5
"""A sample made a spike if its norm is this part of the root of the sum of all squared norms, which
no sample of a batch of like samples has."""

OVER = 2.0
"""And if its norm is this many times the usual largest norm of a sample."""

WARM_UP = 0.3
"""The first part of the steps does not count in the ranking: an untrained model finds all hard."""

LEAST_VISITS = 4
"""So often must a sample have been among the largest before the ranking says more than chance."""

ALWAYS = 0.8
"""A sample that is among the largest in this share of the most visits comes back each time."""

OFTEN = 0.5
"""From this share on, up to `ALWAYS`, a sample comes back often, as hard samples do."""

DEVIATIONS = 2.5
"""The samples that come back each time are a group of their own if they outnumber those that come
back often by this many standard deviations of the counts."""

BROKEN = 5.0
"""A sample whose norm is this many times the usual largest norm, again and again, is broken."""

BROKEN_VISITS = 3
"""So often."""

DENSE = 0.5
"""Below this share of steps with samples, the rows are those of spikes."""

MOST = 100
"""The largest number of samples in a finding."""


@dataclass(frozen=True)
class SpikeSamples:
    """The samples behind one spike of the norm, the largest first.

    Attributes:
        step: the step of the spike.
        of: how many samples the step had.
        names: who they are, in words: the ids, or the places in the batch.
        ids: the ids; None if the record does not tell.
        ratios: the norms over the median of the batch.
        shares: the norms over the root of the sum of all squared norms.
    """

    step: int
    of: int
    names: tuple[str, ...]
    ids: tuple[int | str, ...] | None
    ratios: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class RankedSample:
    """A sample that was among the largest of its batch.

    Attributes:
        id: who it is.
        hits: how often, after the first steps.
        ratio: the geometric mean of its norms over the median of their batch.
        huge: how often its norm was `BROKEN` times the usual largest norm, in the whole run.
        last: the last step at which it was among the largest.
    """

    id: int | str
    hits: int
    ratio: float
    huge: int
    last: int


def spike_samples(trace: Trace) -> list[SpikeSamples]:
    """Return each spike of the norm, or norm that is not finite, that single samples made.

    Args:
        trace: not mutated.
    """
    rows = trace.samples
    if not rows:
        return []
    norm = trace.column("norm")
    # Rows of spikes alone have no usual norm.
    usual = _usual_largest(rows) if len(rows) > DENSE * len(norm) else [0.0] * len(rows)
    spiking = {*trace.steps[norm_spikes(norm)].tolist(), *trace.steps[~np.isfinite(norm)].tolist()}
    found = []
    for (step, samples), level in zip(rows, usual, strict=True):
        if step not in spiking:
            continue
        places = _standing_out(samples, level)
        if places:
            found.append(_behind(step, samples, places))
    return found


def _usual_largest(rows: list[tuple[int, Samples]]) -> list[float]:
    """Return the usual largest norm at each step; NaN where too few rows came before.

    The median of the steps before, and no less than that of the whole run: in a model that has
    learnt everything, each sample that it gets wrong is huge.
    """
    largest = np.array([samples.norms[0] if samples.norms else math.nan for _, samples in rows])
    return np.maximum(usual_before(largest).median, median(largest)).tolist()


def _standing_out(samples: Samples, level: float) -> list[int]:
    bad = [i for i, norm in enumerate(samples.norms) if not math.isfinite(norm)]
    if bad:  # Where all of them are, it may be the whole batch.
        return bad if len(bad) < len(samples.norms) else []
    return [
        i
        for i, norm in enumerate(samples.norms)
        if norm >= SHARE * samples.total and norm >= OVER * level
    ]


def _behind(step: int, samples: Samples, places: list[int]) -> SpikeSamples:
    ids, ratios = samples.ids, samples.ratios
    names = [
        f"the sample at place {samples.at[i]} of the batch" if ids is None else f"sample {ids[i]}"
        for i in places
    ]
    return SpikeSamples(
        step=step,
        of=samples.of,
        names=tuple(names),
        ids=None if ids is None else tuple(ids[i] for i in places),
        ratios=tuple(ratios[i] for i in places),
        shares=tuple(samples.norms[i] / samples.total for i in places),
    )


def ranked_samples(trace: Trace, most: int = MOST) -> list[RankedSample]:
    """Return the samples that were among the largest of their batch most often, the first first.

    The first 30 % of the steps do not count. Samples that are among the largest equally often are
    in the order of the sum of the logarithms of norm over median.

    Args:
        trace: not mutated.
        most: the largest number of samples.

    Returns:
        Empty if the record does not tell who the samples are.
    """
    return _ranking(trace)[:most]


def _ranking(trace: Trace) -> list[RankedSample]:
    rows = [(step, samples) for step, samples in trace.samples if samples.ids is not None]
    if not rows:
        return []
    first = rows[int(WARM_UP * len(rows))][0]
    hits: dict[int | str, int] = defaultdict(int)
    logs: dict[int | str, float] = defaultdict(float)
    huge: dict[int | str, int] = defaultdict(int)
    last: dict[int | str, int] = {}
    for (step, samples), level in zip(rows, _usual_largest(rows), strict=True):
        for id, norm, ratio in zip(samples.ids or (), samples.norms, samples.ratios, strict=True):
            huge[id] += norm >= BROKEN * level
            if step >= first and ratio > 0:
                hits[id] += 1
                logs[id] += math.log(min(ratio, 1e300))
                last[id] = step
    order = sorted(hits, key=lambda id: (-hits[id], -logs[id]))
    return [
        RankedSample(id, hits[id], math.exp(logs[id] / hits[id]), huge[id], last[id])
        for id in order
    ]


def find_spike_samples(trace: Trace) -> list[Finding]:
    """Return one finding on the spikes that single samples made."""
    spikes = spike_samples(trace)
    if not spikes:
        return []
    worst = max(spikes, key=lambda spike: spike.shares[0] if spike.shares[0] > 0 else math.inf)
    times = f"{len(spikes)} spikes" if len(spikes) > 1 else "one spike"
    few = f"{' and '.join(worst.names[:3])} of {worst.of}"
    size = (
        f"held {worst.shares[0]:.0%} of the gradient's size, {worst.ratios[0]:.3g} times the median"
        if math.isfinite(worst.ratios[0])
        else "held inf or NaN"
    )
    return [
        Finding(
            "spike-sample",
            "note",
            spikes[0].step,
            f"Single samples made {times} of the norm: at step {worst.step:,}, {few} {size}.",
            "Look at these samples: a broken file, a wrong label or an odd scale. `per_sample` "
            "clips each sample by itself, so that one cannot move a step.",
            {
                "spikes": len(spikes),
                "samples": [
                    {
                        "step": spike.step,
                        "samples": list(spike.names if spike.ids is None else spike.ids),
                        "ratios": list(spike.ratios),
                        "shares": list(spike.shares),
                    }
                    for spike in spikes[:20]
                ],
            },
            trace.optimizer,
        )
    ]


def find_recurring_samples(trace: Trace) -> list[Finding]:
    """Return one finding on samples that are among the largest each time they are seen.

    In a healthy run the more often samples are among the largest, the fewer there are: from easy to
    hard there is no gap. Wrong labels make a second group, which comes back each time.
    """
    ranked = _ranking(trace)
    broken = [each for each in ranked if each.huge >= BROKEN_VISITS]
    most = ranked[0].hits if ranked else 0
    always = [each for each in ranked if each.hits >= ALWAYS * most]
    often = [each for each in ranked if OFTEN * most <= each.hits < ALWAYS * most]
    apart = len(always) - len(often) > DEVIATIONS * math.sqrt(len(always) + len(often))
    if not broken and (most < LEAST_VISITS or not apart):
        return []
    named = broken if not apart or most < LEAST_VISITS else always
    shown = ", ".join(str(each.id) for each in named[:5])
    shown += f" and {len(named) - 5:,} more" if len(named) > 5 else ""
    what = (
        f"came back at nearly each of {most} visits, where a healthy run has fewer and fewer"
        if named is always
        else f"were {BROKEN:g} times the usual largest norm, {BROKEN_VISITS} times or more"
    )
    one = len(named) == 1
    return [
        Finding(
            "recurring-samples",
            "warning",
            None,
            f"{len(named):,} sample{'s' * (not one)} with the largest norms of their batch {what}: "
            f"{shown}.",
            "Look at these samples, from the first on: wrong labels and broken files are among "
            "them, beside samples that are only hard. `gradclip diagnose --json` lists them.",
            {
                "samples": [each.id for each in ranked[:MOST]],
                "hits": [each.hits for each in ranked[:MOST]],
                "always": len(always),
                "often": len(often),
                "visits": most,
                "broken": [each.id for each in broken[:MOST]],
            },
            trace.optimizer,
        )
    ]
