"""Propose a limit for a run that failed early, from the norms before the failure."""

from __future__ import annotations

import numpy as np

from ..diagnosis import Finding
from ..diagnosis.spikes import began_at, first_of, loss_spikes, norm_spikes
from ..record import Trace
from ..record.rows import Floats

__all__ = ["MIN_NORMS", "guess", "norms_before", "stuck_since", "went_wrong"]

MIN_NORMS = 10
"""The smallest number of norms before a failure for quantiles; with fewer the advice is a guess."""

GUESS = 0.1
"""The first guess over the smallest norm before a failure. We take the smallest norm because a run
that explodes at step 3 has grown at step 2. The guess is far lower because the risks differ: with a
limit that is too low, the next run is slow but its record is useful; with a limit that is too high,
the next run fails again and its record is useless."""

LOWER = 0.5
"""The first guess is at most this multiple of the limit that did not prevent the failure."""

LEARNT = 0.9
"""A run whose last losses are not under this share of its first losses has learnt nothing."""


def went_wrong(trace: Trace, explosion: Finding | None) -> int | None:
    """Return the step, among the first ones, at which the run failed, or None.

    A run fails if it explodes, or if its loss rises to more than twice the first loss.
    """
    first = first_of(trace.column("loss"))
    steps = [spike.step for spike in loss_spikes(trace) if not spike.rise < abs(first)]
    steps += [explosion.step] if explosion is not None and explosion.step is not None else []
    wrong = min(steps, default=None)
    if wrong is None or (trace.steps < wrong).sum() >= MIN_NORMS:
        return None
    return wrong


def stuck_since(trace: Trace) -> int | None:
    """Return the step of the norm spike after which the run learnt nothing, or None.

    Such a run is often dead: its later norms come from a model that no longer changes.
    """
    loss = trace.column("loss")
    last = loss[np.isfinite(loss)][-MIN_NORMS:]
    spikes = np.flatnonzero(norm_spikes(trace.column("norm")))
    if len(trace.steps) < 5 * MIN_NORMS or not len(last) or not len(spikes):
        return None
    # The rule holds only for positive losses: a share of a negative loss has no meaning.
    if not 0 < LEARNT * began_at(loss) <= float(np.median(last)):
        return None
    return int(trace.steps[spikes[0]])


def norms_before(trace: Trace, step: float, largest: float) -> Floats:
    """Return the norms above zero before a step."""
    norm = trace.column("norm")
    return norm[(trace.steps < step) & (norm > 0) & (norm <= largest)]


def guess(trace: Trace, wrong: int, largest: float) -> float | None:
    """Return a threshold under the norms before a step and under the limit of the run, or None."""
    before, limit = norms_before(trace, wrong, largest), trace.column("limit")
    if not len(before):  # The run exploded in its first step: its norm is all there is.
        before = norms_before(trace, wrong + 1, largest)
    if not len(before):
        return None
    used = limit[np.isfinite(limit) & (limit > 0)][:1].tolist()
    least = min([GUESS * float(before.min()), *(LOWER * size for size in used)])
    return least if least > 0 else None  # A tenth of the smallest float is 0.
