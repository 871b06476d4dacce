"""Find the samples that made a spike, and those that come back again and again."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np

from ..record.rows import Samples
from ..record.run import Run
from ..record.trace import Trace, traces_of
from .finding import Finding
from .spikes import norm_spikes
from .window import median, usual_before

__all__ = [
    "RankedSample",
    "SamplesOfTrace",
    "SpikeSamples",
    "find_recurring_samples",
    "find_spike_samples",
    "ranked_samples",
    "samples_of",
    "spike_samples",
]

SHARE = 0.5
"""A sample made a spike if its norm is this part of the root of the sum of all squared norms, which
no sample of a batch of like samples has."""

OVER = 2.0
"""And if its norm is this many times the usual largest norm of a sample."""

WARM_UP = 0.3
"""The first part of the steps does not count in the ranking: an untrained model finds all hard."""

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
        first: the first step at which it was among the largest.
        last: the last such step.
    """

    id: int | str
    hits: int
    ratio: float
    huge: int
    first: int
    last: int


@dataclass(frozen=True)
class SamplesOfTrace:
    """What a record tells about the samples of one optimizer's steps.

    Attributes:
        optimizer: its id.
        spikes: the spikes that single samples made.
        ranked: the samples that were among the largest of their batch most often.
    """

    optimizer: int
    spikes: list[SpikeSamples]
    ranked: list[RankedSample]

    @property
    def title(self) -> str:
        """The heading of the ranking."""
        of = f" (optimizer {self.optimizer})" if self.optimizer else ""
        return f"Most often among the samples with the largest norms of their batch{of}"

    def lines(self, most: int) -> list[str]:
        """Return the first of the ranking, one a line."""
        return [
            f"sample {each.id}: {each.hits} times, {each.ratio:.3g} times the median of its batch, "
            f"last at step {each.last:,}"
            for each in self.ranked[:most]
        ]

    def to_dict(self) -> dict[str, object]:
        """Return it as plain data; a ratio may be inf."""
        return asdict(self)


def samples_of(run: Run) -> list[SamplesOfTrace]:
    """Return what a record tells about samples, for each optimizer whose rows name some."""
    return [
        SamplesOfTrace(trace.optimizer, spike_samples(trace), ranked_samples(trace))
        for trace in traces_of([run])
        if trace.samples
    ]


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

    Samples that are huge again and again come before all. The first 30 % of the steps do not count
    for the others; those that are among the largest equally often are in the order of the sum of
    the logarithms of norm over median.

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
    begin = rows[int(WARM_UP * len(rows))][0]
    seen: dict[int | str, list[tuple[int, float]]] = defaultdict(list)
    huge: dict[int | str, int] = defaultdict(int)
    for (step, samples), level in zip(rows, _usual_largest(rows), strict=True):
        for id, norm, ratio in zip(samples.ids or (), samples.norms, samples.ratios, strict=True):
            huge[id] += norm >= BROKEN * level
            seen[id].append((step, math.log(ratio) if 0 < ratio < math.inf else 0.0))
    found = []
    for id, pairs in seen.items():
        logs = [log for step, log in pairs if step >= begin]
        if logs or huge[id] >= BROKEN_VISITS:
            mean = sum(log for _, log in pairs) / len(pairs)
            ranked = RankedSample(
                id, len(logs), math.exp(mean), huge[id], pairs[0][0], pairs[-1][0]
            )
            found.append((ranked.huge < BROKEN_VISITS, -len(logs), -sum(logs), ranked))
    return [each[-1] for each in sorted(found, key=lambda each: each[:-1])]


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
    """Return one finding on samples that are far larger than others each time they are seen.

    How often a sample is among the largest alone is no fault: the hard samples of a healthy run
    come back as surely as wrong labels do. `ranked_samples` has them all.
    """
    ranked = _ranking(trace)
    broken = [each for each in ranked if each.huge >= BROKEN_VISITS]
    if not broken:
        return []
    names = ", ".join(str(each.id) for each in broken[:5])
    names += f" and {len(broken) - 5:,} more" if len(broken) > 5 else ""
    one = len(broken) == 1
    return [
        Finding(
            "recurring-samples",
            "warning",
            min(each.first for each in broken),
            f"{'One sample' if one else f'{len(broken):,} samples'} had {BROKEN:g} times the usual "
            f"largest norm of a sample, {BROKEN_VISITS} times or more: {names}.",
            f"Look at {'this sample' if one else 'these samples'}: a broken file, a value of "
            "another scale, or a wrong label. Remove or correct what is wrong, and train again.",
            {
                "samples": [each.id for each in broken[:MOST]],
                "times": [each.huge for each in broken[:MOST]],
            },
            trace.optimizer,
        )
    ]
